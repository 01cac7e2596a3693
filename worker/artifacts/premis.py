"""Describe artifacts as PREMIS 3: the file, its copies, and each full read as a fixity check."""

from collections.abc import Iterable, Mapping
from datetime import datetime
from importlib.metadata import version
from typing import Any
from xml.etree import ElementTree as ET

from worker.catalogue import BAD, Artifact, Catalogue, CopyState, is_full_read

NAMESPACE = "http://www.loc.gov/premis/v3"
_XSI = "http://www.w3.org/2001/XMLSchema-instance"
_SCHEMA = f"{NAMESPACE} https://www.loc.gov/standards/premis/premis.xsd"
_EVENTS = 100
"""Most verdicts of one artifact that become events: the latest ones."""
_OUTCOMES = {CopyState.VERIFIED.value: "success"} | {state.value: "fail" for state in BAD}
"""The outcome of a check by its verdict; a copy that cannot be read now is a `warning`: its bytes may be right."""
_AGENT = "zot-artifacts"
_UNKNOWN_FORMAT = "application/octet-stream"


def premis(artifacts: Iterable[Artifact], catalogue: Catalogue) -> bytes:
    """Return a PREMIS document: one object for each artifact, its latest verdicts as events, and this program as agent.

    Control characters of keys and of messages, which XML cannot hold, are replaced.
    """
    ET.register_namespace("premis", NAMESPACE)
    ET.register_namespace("xsi", _XSI)
    root = ET.Element(_name("premis"), {"version": "3.0", f"{{{_XSI}}}schemaLocation": _SCHEMA})
    events = []
    for artifact in artifacts:
        rows = [
            row
            for row in catalogue.verifications.of(artifact.bucket, artifact.key, limit=_EVENTS)
            if row["version"] == artifact.version
        ]
        _object(root, artifact, catalogue, [row["id"] for row in rows])
        events += [(artifact, row) for row in reversed(rows)]
        events.append((artifact, None))
    for artifact, row in events:
        _event(root, artifact, row)
    agent = _add(root, "agent")
    _identifier(agent, "agent", _AGENT)
    _add(agent, "agentName", _AGENT)
    _add(agent, "agentType", "software")
    _add(agent, "agentVersion", version("zot-artifact-worker"))
    ET.indent(root)
    text: bytes = ET.tostring(root, encoding="utf-8", xml_declaration=True)
    return text + b"\n"


def _object(root: ET.Element, artifact: Artifact, catalogue: Catalogue, rows: list[int]) -> None:
    made = _add(root, "object")
    made.set(f"{{{_XSI}}}type", "premis:file")
    _identifier(made, "object", _object_id(artifact))
    traits = _add(made, "objectCharacteristics")
    fixity = _add(traits, "fixity")
    _add(fixity, "messageDigestAlgorithm", "SHA-256")
    _add(fixity, "messageDigest", artifact.digest.sha256)
    _add(fixity, "messageDigestOriginator", _AGENT)
    _add(traits, "size", str(artifact.digest.size))
    designation = _add(_add(traits, "format"), "formatDesignation")
    _add(designation, "formatName", artifact.properties.get("content_type") or _UNKNOWN_FORMAT)
    _add(made, "originalName", artifact.path)
    for copy in catalogue.artifacts.copies(artifact).values():
        if copy.state.present:
            storage = _add(made, "storage")
            location = _add(storage, "contentLocation")
            _add(location, "contentLocationType", "store, bucket and key")
            _add(location, "contentLocationValue", f"{copy.store}:{artifact.path}")
            _add(storage, "storageMedium", copy.store)
    for id_ in (_ingest_id(artifact), *(str(row) for row in rows)):
        link = _add(made, "linkingEventIdentifier")
        _add(link, "linkingEventIdentifierType", "local")
        _add(link, "linkingEventIdentifierValue", id_)


def _event(root: ET.Element, artifact: Artifact, row: Mapping[str, Any] | None) -> None:
    """Add the event of one verdict, or without one that of the ingest."""
    event = _add(root, "event")
    _identifier(event, "event", _ingest_id(artifact) if row is None else str(row["id"]))
    _add(event, "eventType", "ingestion" if row is None else "fixity check")
    _add(event, "eventDateTime", _time(artifact.created_at if row is None else row["at"]))
    if row is not None:
        detail = _add(event, "eventDetailInformation")
        part = "all" if is_full_read(row["verdict"], row["found_sha256"]) else "not all"
        _add(detail, "eventDetail", f"{part} bytes of the copy in {row['store']} were read and hashed")
        outcome = _add(event, "eventOutcomeInformation")
        _add(outcome, "eventOutcome", _OUTCOMES.get(row["verdict"], "warning"))
        note = f"{row['verdict']}: {row['detail']}" if row["detail"] else row["verdict"]
        _add(_add(outcome, "eventOutcomeDetail"), "eventOutcomeDetailNote", note)
    agent = _add(event, "linkingAgentIdentifier")
    _add(agent, "linkingAgentIdentifierType", "local")
    _add(agent, "linkingAgentIdentifierValue", _AGENT)
    linked = _add(event, "linkingObjectIdentifier")
    _add(linked, "linkingObjectIdentifierType", "local")
    _add(linked, "linkingObjectIdentifierValue", _object_id(artifact))


def _identifier(parent: ET.Element, of: str, value: str) -> None:
    made = _add(parent, f"{of}Identifier")
    _add(made, f"{of}IdentifierType", "local")
    _add(made, f"{of}IdentifierValue", value)


def _object_id(artifact: Artifact) -> str:
    return f"{artifact.path}#{artifact.version}"


def _ingest_id(artifact: Artifact) -> str:
    return f"ingest:{_object_id(artifact)}"


def _add(parent: ET.Element, name: str, text: str | None = None) -> ET.Element:
    made = ET.SubElement(parent, _name(name))
    if text is not None:
        made.text = "".join(char if _is_allowed(char) else "\ufffd" for char in text)
    return made


def _name(name: str) -> str:
    return f"{{{NAMESPACE}}}{name}"


def _is_allowed(char: str) -> bool:
    """Return whether XML 1.0 can hold a character as it is; a carriage return would become a line feed."""
    return char in "\t\n" or (char >= " " and char not in "\ufffe\uffff" and not "\ud800" <= char <= "\udfff")


def _time(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds")
