"""`relais bench road`: reports in over MLLP, mails out over LMTP, through a fresh `relais up` of two operators.

Four connections send the same official-size report under ever new identifiers, each as soon as its last one was
acknowledged. Between these runs the same machine protects as many mails with `openssl cms`. Times of delivery are the
ones the gateways' own spools noted, read beside them.
"""

from __future__ import annotations

import asyncio
import base64
import random
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from fpdf import FPDF
from sqlalchemy import Engine, create_engine, select

from bridges.hl7.mllp import FrameDecoder, FrameError, encode
from config.bench.child import BenchError, Child, Cost, relais_up
from config.bench.history import history
from config.bench.protection import DESCRIPTION, OpenSslCms, openssl_cms
from config.bench.report import percentile, result, row
from config.show import acknowledgement_code
from mta.message import DeliveryState, TargetKind
from mta.tables import deliveries, messages

OFFICIAL_BYTES = 293_000
"""About the size of the official example of a laboratory report with its PDF, as an MLLP frame."""
_PAGE_BYTES = 1_400
"""What a PDF of one page is long without its attachment."""
CONNECTIONS = 4
_SETTLE_SECONDS = 180.0
_POLL_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Scale:
    reports: int
    """Per run."""
    runs: int
    history: int
    """Messages in the spool that is traced."""
    lookups: int


SCALES = {"quick": Scale(12, 3, 100_000, 200), "full": Scale(200, 5, 100_000, 1000)}


@dataclass(frozen=True, slots=True)
class Run:
    """One run of the road."""

    per_second: float
    """Reports, from the first byte sent to the last mail in its mailbox."""
    latencies: tuple[float, ...]
    """Seconds per report, from its first byte sent until its last mail was in its mailbox."""
    acknowledgements: tuple[float, ...]
    """Seconds per report, from its first byte sent to its AA."""
    mails: int
    mail_bytes: int
    """Median size of one mail before its protection, as near as base64 tells (the protected form is 4/3 as long)."""
    costs: dict[str, Cost]
    """CPU seconds of this run, peak memory since the start."""


def road(scale: str, report: bytes | None = None) -> dict[str, Any]:
    """Measure at `quick` or `full` scale; `report` (an HL7 v2 message) instead of the demonstration's.

    Raises `BenchError` when something does not start, arrive or exist.
    """
    return measure(scale, SCALES[scale], report)


def measure(name: str, scale: Scale, report: bytes | None = None) -> dict[str, Any]:
    """See `road`."""
    template = official_report() if report is None else report
    runs: list[Run] = []
    references: list[float] = []
    with ExitStack() as stack:
        openssl = stack.enter_context(openssl_cms(CONNECTIONS))
        # The history is written while the servers start: nothing is measured yet.
        thread = stack.enter_context(ThreadPoolExecutor(1))
        past = history(scale.history, scale.lookups, scale.runs)
        writing = thread.submit(stack.enter_context, past)
        with relais_up() as child:
            traced = writing.result()
            _one_run(child, template, CONNECTIONS, "W")  # connections, caches and imports
            for number in range(scale.runs):
                run = _one_run(child, template, scale.reports, str(number))
                runs.append(run)
                references.append(_reference(openssl, run, scale.reports))
        traces = traced()
    return result("road", name, [*_road_rows(runs, references, scale, len(template)), *_trace_rows(traces, scale)])


def official_report(size: int = OFFICIAL_BYTES) -> bytes:
    """The demonstration report with a larger PDF in its document, about `size` bytes long."""
    message = resources.files("config.demo").joinpath("report.hl7").read_bytes()
    document = re.search(rb"\^TEXT\^XML\^Base64\^([A-Za-z0-9+/=]+)", message)
    if document is None:
        raise BenchError("the demonstration report has no document")
    cda = base64.b64decode(document[1])
    pdf = re.search(rb'mediaType="application/pdf" representation="B64">([^<]+)', cda)
    if pdf is None:
        raise BenchError("the demonstration report has no PDF")
    # Base64 twice, each 4/3: in the document and in the message.
    wanted = len(pdf[1]) * 3 // 4 + (size - len(message)) * 9 // 16 - _PAGE_BYTES
    larger = cda[: pdf.start(1)] + base64.b64encode(_pdf(wanted)) + cda[pdf.end(1) :]
    return message[: document.start(1)] + base64.b64encode(larger) + message[document.end(1) :]


def _pdf(size: int) -> bytes:
    """One page and an attachment that does not compress, as the pictures and fonts of real ones do not."""
    noise = random.Random(size).randbytes(size)  # noqa: S311 - the same bytes every time
    page = FPDF()
    page.add_page()
    page.set_font("helvetica", size=12)
    page.cell(text="Compte rendu d'examens biologiques")
    page.embed_file(bytes=noise, basename="courbes.bin", compress=False)
    return bytes(page.output())


def _one_run(child: Child, template: bytes, count: int, tag: str) -> Run:
    identifiers = [f"BENCH-{tag}-{number}" for number in range(count)]
    before = child.costs()
    sent, acknowledged = asyncio.run(_send_all(child, template, identifiers))
    arrived, sizes = _wait_delivered(child, identifiers)
    after = child.costs()
    latencies = tuple(max(arrived[name]) - sent[name] for name in identifiers)
    last = max(max(times) for times in arrived.values())
    return Run(
        per_second=count / (last - min(sent.values())),
        latencies=latencies,
        acknowledgements=tuple(acknowledged[name] - sent[name] for name in identifiers),
        mails=sum(len(times) for times in arrived.values()),
        # what travels is the protected entity in base64
        mail_bytes=sorted(sizes)[len(sizes) // 2] * 3 // 4,
        costs={
            name: Cost(cost.cpu_seconds - before.get(name, Cost(0.0, 0.0)).cpu_seconds, cost.peak_mb)
            for name, cost in after.items()
        },
    )


async def _send_all(
    child: Child, template: bytes, identifiers: Sequence[str]
) -> tuple[dict[str, float], dict[str, float]]:
    """UNIX times by identifier: first byte sent, AA received."""
    waiting = list(reversed(identifiers))
    sent: dict[str, float] = {}
    acknowledged: dict[str, float] = {}
    host, port = child.endpoints["mllp"]["host"], child.endpoints["mllp"]["port"]

    async def connection() -> None:
        reader, writer = await asyncio.open_connection(host, port)
        decoder = FrameDecoder(1024 * 1024)
        try:
            while waiting:
                identifier = waiting.pop()
                frame = encode(_with_identifier(template, identifier))
                sent[identifier] = time.time()
                writer.write(frame)
                answer = await _acknowledgement(reader, decoder)
                acknowledged[identifier] = time.time()
                if acknowledgement_code(answer) != "AA":
                    raise BenchError(f"the report was not accepted: {acknowledgement_code(answer) or 'no MSA'}")
        finally:
            writer.close()

    try:
        async with asyncio.timeout(_SETTLE_SECONDS):
            await asyncio.gather(*(connection() for _ in range(CONNECTIONS)))
    except (OSError, TimeoutError) as error:
        raise BenchError(f"the laboratory's listener broke off: {error or 'timed out'}") from error
    return sent, acknowledged


async def _acknowledgement(reader: asyncio.StreamReader, decoder: FrameDecoder) -> bytes:
    while data := await reader.read(65536):
        for event in decoder.feed(data):
            if not isinstance(event, FrameError):
                return event.payload
    raise ConnectionError("closed without an acknowledgement")


def _with_identifier(message: bytes, identifier: str) -> bytes:
    """The same message under another MSH-10."""
    end = re.search(rb"[\r\n]", message)
    if end is None or message[:3] != b"MSH" or message[: end.start()].count(b"|") < 9:
        raise BenchError("the report is not an HL7 v2 message")
    fields = message[: end.start()].split(b"|")
    fields[9] = identifier.encode()
    return b"|".join(fields) + message[end.start() :]


def _wait_delivered(child: Child, identifiers: Sequence[str]) -> tuple[dict[str, list[float]], list[int]]:
    """When each mail of each report reached its mailbox, and the sizes of the mails that crossed."""
    ours = _beside(child.state / "laboratoire" / "relais.db")
    theirs = _beside(child.state / "ville" / "relais.db")
    deadline = time.monotonic() + _SETTLE_SECONDS
    try:
        while True:
            mails = _relayed(ours, identifiers)
            found = _delivered(theirs, list(mails))
            if mails and len(found) == len(mails) and set(mails.values()) == set(identifiers):
                arrived: dict[str, list[float]] = {name: [] for name in identifiers}
                for message_id, (at, _) in found.items():
                    arrived[mails[message_id]].append(at)
                return arrived, [size for _, size in found.values()]
            if time.monotonic() > deadline:
                raise BenchError(
                    f"{len(set(mails.values()))} of {len(identifiers)} reports were relayed, "
                    f"{len(found)} of their {len(mails)} mails are in their mailboxes"
                )
            time.sleep(_POLL_SECONDS)
    finally:
        ours.dispose()
        theirs.dispose()


def _beside(database: Path) -> Engine:
    """A running gateway's database, read only: its own process alone writes."""
    return create_engine(f"sqlite:///file:{database}?mode=ro&uri=true", hide_parameters=True)


def _relayed(engine: Engine, identifiers: Sequence[str]) -> dict[str, str]:
    """MSH-10 by Message-ID of the mails made of these reports."""
    query = (
        select(deliveries.c.message_id, messages.c.external_id, deliveries.c.state, deliveries.c.code)
        .join_from(messages, deliveries)
        .where(
            messages.c.external_id.in_(identifiers),
            messages.c.external_id != "",
            deliveries.c.target == TargetKind.SMTP.value,
        )
    )
    with engine.connect() as connection:
        rows = connection.execute(query).all()
    for found in rows:
        if found.state == DeliveryState.FAILED.value:
            raise BenchError(f"a mail could not be relayed: {found.code}")
    return {found.message_id: found.external_id for found in rows}


def _delivered(engine: Engine, message_ids: Sequence[str]) -> dict[str, tuple[float, int]]:
    """When these mails reached their mailboxes, and their sizes as received."""
    query = (
        select(deliveries.c.message_id, deliveries.c.state, deliveries.c.code, deliveries.c.ended_at, messages.c.size)
        .join_from(deliveries, messages)
        .where(deliveries.c.message_id.in_(message_ids), deliveries.c.target == TargetKind.MAILBOX.value)
    )
    with engine.connect() as connection:
        rows = connection.execute(query).all()
    for found in rows:
        if found.state == DeliveryState.FAILED.value:
            raise BenchError(f"a mail could not be delivered: {found.code}")
    return {r.message_id: (r.ended_at, r.size) for r in rows if r.state == DeliveryState.DELIVERED.value}


def _reference(openssl: OpenSslCms, run: Run, reports: int) -> float:
    """Reports per second whose mails openssl protects: as many mails of the same size as the road protected."""
    return openssl.mails_per_second(run.mails, run.mail_bytes) * reports / run.mails


def _road_rows(runs: Sequence[Run], references: Sequence[float], scale: Scale, size: int) -> list[dict[str, Any]]:
    speeds = [run.per_second for run in runs]
    mails = runs[0].mails / scale.reports
    n = scale.reports

    def milliseconds(name: str, of: Callable[[Run], Sequence[float]], percent: float) -> dict[str, Any]:
        return row(name, [1000 * percentile(of(run), percent) for run in runs], "ms", n)

    rows = [
        row("road_293k_mps", speeds, f"reports/s ({size} bytes, {mails:g} mails each)", n),
        row(
            "road_vs_openssl_process",
            speeds,
            "reports/s",
            n,
            reference=f"{DESCRIPTION}, {mails:g} mails of {runs[0].mail_bytes} bytes a report, {CONNECTIONS} at once",
            reference_values=references,
        ),
        milliseconds("road_p99_ms", lambda run: run.latencies, 99),
        milliseconds("road_p50_ms", lambda run: run.latencies, 50),
        milliseconds("road_acknowledged_p99_ms", lambda run: run.acknowledgements, 99),
        milliseconds("road_acknowledged_p50_ms", lambda run: run.acknowledgements, 50),
    ]
    for name in sorted(runs[-1].costs):
        used = [run.costs[name] for run in runs if name in run.costs]
        rows.append(row(f"road_cpu_s_{name}", [cost.cpu_seconds for cost in used], "s per run", n))
        rows.append(row(f"road_peak_mb_{name}", [cost.peak_mb for cost in used], "MB", n))
    return rows


def _trace_rows(traces: Sequence[Sequence[float]], scale: Scale) -> list[dict[str, Any]]:
    return [
        row(name, [1000 * percentile(run, percent) for run in traces], "ms", scale.history)
        for name, percent in (("trace_ms", 50), ("trace_p99_ms", 99))
    ]
