"""Text from outside, bounded and escaped."""

import sys
import unicodedata

from zot_artifact_client.text_escaping import bounded, escaped

_HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}


def test_a_text_has_a_bound_and_no_character_that_a_terminal_obeys() -> None:
    """Line ends, escape sequences, bidirectional overrides and half surrogates are shown, not obeyed."""
    assert bounded("plain text, ünïcode too") == "plain text, ünïcode too"
    assert bounded("a\nb\x1b[31m\u202ec\ud800") == "a\\nb\\x1b[31m\\u202ec\\ud800"
    assert bounded("x" * 10_000, 100).endswith("... (10000 characters)")
    for text in ("x" * 10_000, "\n" * 10_000, "\u202e" * 99):
        assert len(bounded(text, 100)) <= 100


def test_every_hidden_character_of_unicode_is_escaped() -> None:
    """Control and format characters are shown: soft hyphens, tags, isolates, line ends, however a text is cut."""
    hidden = [char for char in map(chr, range(sys.maxunicode + 1)) if unicodedata.category(char) in _HIDDEN]
    assert {"\u00ad", "\u2066", "\U000e0041", "\u2029", "\x85"} <= set(hidden)
    text = "".join(hidden)
    for shown in (escaped(text), bounded(text, 10**7), bounded(text, 10**7, keep_end=True)):
        assert shown.isascii()
        assert shown.isprintable()


def test_a_text_can_keep_its_end() -> None:
    """A way out that comes last is still there when the text is cut in its middle."""
    shown = bounded(f"store: {'x' * 10_000}; create it", 100, keep_end=True)
    assert (len(shown), shown[:7], shown[-11:]) == (100, "store: ", "; create it")
