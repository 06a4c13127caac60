"""What tests of `mmapds.inspection` ask about its findings."""

from __future__ import annotations

from mmapds.inspection import Finding, verify


def errors(path: str) -> list[Finding]:
    """What makes `path` corrupt."""
    return [finding for finding in verify(path) if finding.severity == "error"]


def only(path: str, severity: str, where: str, what: str) -> None:
    """Asserts that there is one finding, and that it is this one; `what` is a part of its text."""
    findings = verify(path)
    assert [(finding.severity, finding.where) for finding in findings] == [(severity, where)], findings
    assert what in findings[0].what
