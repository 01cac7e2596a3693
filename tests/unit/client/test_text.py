"""Text from outside, bounded and escaped."""

from zot_artifact_client.text import bounded


def test_a_text_has_a_bound_and_no_character_that_a_terminal_obeys() -> None:
    """Line ends, escape sequences, bidirectional overrides and half surrogates are shown, not obeyed."""
    assert bounded("plain text, ünïcode too") == "plain text, ünïcode too"
    assert bounded("a\nb\x1b[31m\u202ec\ud800") == "a\\nb\\x1b[31m\\u202ec\\ud800"
    assert bounded("x" * 10_000, 100).endswith("... (10000 characters)")
    for text in ("x" * 10_000, "\n" * 10_000, "\u202e" * 99):
        assert len(bounded(text, 100)) <= 100
