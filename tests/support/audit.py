"""Audits for tests: `pagefold fsck`'s rpc as one call, and the claim that nothing is different."""

from __future__ import annotations

from dataclasses import dataclass

from pagefold_proto.v1 import admin_pb2 as pb

from support.server import Server

SECONDS = 120


@dataclass(frozen=True)
class Audit:
    """What one said."""

    findings: list[pb.FsckFinding]
    summary: pb.FsckSummary
    progress: list[pb.FsckProgress]
    names: dict[str, str]

    @property
    def kinds(self) -> dict[str, int]:
        """How many of each kind, by short names."""
        return {word(tally.kind): tally.count for tally in self.summary.tallies}

    def __str__(self) -> str:
        return "\n".join(f"{word(finding.kind)}: {finding.text}" for finding in self.findings) or "clean"


def word(kind: int) -> str:
    return pb.FindingKind.Name(kind).removeprefix("FINDING_KIND_")


def audit(server: Server, thorough: bool = True, patience: float = 10, names: bool = False) -> Audit:
    """Looks at everything, once."""
    request = pb.FsckRequest(thorough=thorough, patience_seconds=patience, names=names)
    findings, progress, held, summaries = [], [], {}, []
    for news in server.admin.Fsck(request, timeout=SECONDS):
        match news.WhichOneof("news"):
            case "finding":
                findings.append(news.finding)
            case "progress":
                progress.append(news.progress)
            case "name":
                held[news.name.name] = news.name.holder
            case "summary":
                summaries.append(news.summary)
    (summary,) = summaries
    return Audit(findings, summary, progress, held)


def assert_clean(server: Server) -> pb.FsckSummary:
    """Nothing is different, and everything could be looked at."""
    found = audit(server)
    assert found.kinds == {}, str(found)
    return found.summary
