"""Every query of the alarms and of the dashboard asks for what the exporter really exports."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import yaml
from celery import Celery
from prometheus_client import Metric

from tests.servers import Valkey
from worker import clock, metric_counters
from worker.beat_scheduler import Scheduler
from worker.catalogue import Catalogue, EvidenceCheck, FindingKind, VerdictRow
from worker.metrics.background_groups import Group
from worker.metrics.exporter import Exporter
from worker.metrics.totals_sender import Sender
from worker.settings import Settings
from worker.settings.budgets import Budget, Prices
from worker.settings.section_models import StoreLimits
from worker.storage import Digest
from worker.storage.errors import StorageError
from worker.storage.keys import CANARY_BUCKET
from zot_artifact_client.contract import SWEEP_LEFTOVERS, TASKS, JobState, Queue

ROOT = Path(__file__).resolve().parents[3]
RULES = yaml.safe_load((ROOT / "deploy/prometheus/rules.yaml").read_text())
ALARMS = {rule["alert"]: rule for group in RULES["groups"] for rule in group["rules"]}
DASHBOARD = json.loads((ROOT / "deploy/grafana/zot-artifacts.json").read_text())
PANELS = {panel["title"]: panel for panel in DASHBOARD["panels"] if panel["type"] != "row"}
RUNBOOK = ROOT / "docs/runbook.md"
SELECTOR = re.compile(r"(zot_artifacts_\w+)(?:\{([^}]*)\})?")
MATCHER = re.compile(r'(\w+)\s*(?:=~|!~|!=|=)\s*"([^"]*)"')
GROUPING = re.compile(r"\b(?:by|on|ignoring|without)\s*\(([^)]*)\)")
LABEL_IN_TEXT = re.compile(r"\$labels\.(\w+)|\{\{\s*(\w+)\s*\}\}")


def scaling() -> Iterator[tuple[str, str]]:
    """Yield the query by which KEDA scales each Deployment."""
    scaled = yaml.safe_load_all((ROOT / "deploy/kubernetes/autoscaling/scaled-objects.yaml").read_text())
    yield from ((each["metadata"]["name"], each["spec"]["triggers"][0]["metadata"]["query"]) for each in scaled)


def queries() -> Iterator[tuple[str, str]]:
    """Yield every query, by the name of its alarm or panel, without the variables of Grafana."""
    yield from ((name, rule["expr"]) for name, rule in ALARMS.items())
    yield from scaling()
    for title, panel in PANELS.items():
        for target in panel["targets"]:
            yield title, target["expr"].replace("$__rate_interval", "5m").replace("$store", ".*")


@pytest.fixture(scope="module")
def families(valkey: Valkey, tmp_path_factory: pytest.TempPathFactory) -> list[Metric]:
    """Return what an exporter exports whose catalogue and broker have some of everything."""
    url = valkey.url
    home = tmp_path_factory.mktemp("exported")
    settings = Settings(
        home=home, broker=url, store_limits={"dr": StoreLimits(concurrency=2)},
        prices={"dr": Prices(requests_1000=1)}, budgets={"dr": Budget(cost_per_month=5)},
    )  # fmt: skip
    settings.prepare()
    _fill_catalogue(settings)
    app = Celery("filling", backend=url, set_as_current=False)
    metric_counters.drain()
    for meter in metric_counters.METERS.values():
        labels = ["dr" if label == "store" else "x" for label in meter.labels]
        meter.observe(*labels, value=1) if meter.buckets else meter.add(*labels)
    Sender(app).send()
    beat = Scheduler.__new__(Scheduler)  # without its file
    beat.app = app
    beat._record()
    app.close()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("worker.metrics.catalogue_figures._LAG", timedelta(0))
        return _collected(Exporter(settings))


@pytest.fixture(scope="module")
def exported(families: list[Metric]) -> dict[str, set[str]]:
    """Return the labels of every sample by its name."""
    found: dict[str, set[str]] = {}
    for family in families:
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def _collected(exporter: Exporter) -> list[Metric]:
    groups: list[Group] = exporter.groups._groups
    ledger = next(each for each in groups if each.name == "ledger")
    ledger.collect.__self__._jobs_until = ledger.collect.__self__._findings_until = clock.now() - timedelta(hours=1)
    for group in groups:
        group.refresh()
        assert group.up, group.name
    found: list[Metric] = list(exporter.registry.collect())
    exporter._opened().close()
    return found


def _fill_catalogue(settings: Settings) -> None:
    catalogue, now = Catalogue(settings.catalogue_url), clock.now()
    for key in ("bad", "good"):
        made = catalogue.artifacts.record("releases", key, Digest(1, "0" * 64), {}, now, stores=["dr"]).artifact
        catalogue.artifacts.finish_copy(made, "dr", tag="1", evidence={}, now=now)
        copy = catalogue.artifacts.copies(made)["dr"]
        for job, verdict in (("first", "corrupt"), ("second", "verified"), ("third", "corrupt")):
            if key == "bad" or verdict == "verified":
                catalogue.verifications.record(VerdictRow.of(job, made, copy, verdict, tag="1"), now=now)
    catalogue.ledger.acquire(
        "swept", SWEEP_LEFTOVERS.kind, {}, owner="me", writes_to=None, parent=None, now=now, lease=timedelta(seconds=30)
    )
    result = {"removed": {}, "quarantined": {"dr": 5}}
    catalogue.ledger.finish("swept", 1, JobState.SUCCEEDED, now=now, result=result)
    canary = catalogue.artifacts.record(CANARY_BUCKET, "dr-0", Digest(1, "0" * 64), {}, now, stores=["dr"]).artifact
    catalogue.artifacts.finish_copy(canary, "dr", tag="1", evidence={}, now=now)
    damaged = catalogue.canaries.begin("dr", canary.key, now=now)
    catalogue.canaries.damaged(damaged, canary, now=now)
    copy = catalogue.artifacts.copies(canary)["dr"]
    for job, verdict in (("first", "corrupt"), ("second", "verified")):
        catalogue.verifications.record(VerdictRow.of(job, canary, copy, verdict, tag="1"), now=now)
    catalogue.evidence_checks.record([EvidenceCheck(copy.id, "listing", "agrees")], now=now)
    catalogue.close()


def test_every_query_asks_for_what_is_exported(exported):
    """Each metric of each query is exported, with each label that a query selects, groups or matches by."""
    wrong = []
    for name, query in queries():
        labels: set[str] = set()
        for metric, matchers in SELECTOR.findall(query):
            labels |= exported.get(metric, set())
            if metric not in exported:
                wrong.append(f"{name}: {metric} is not exported")
            wrong += [
                f"{name}: {metric} has no label {label}"
                for label, _ in MATCHER.findall(matchers)
                if label not in exported.get(metric, set())
            ]
        grouped = {label.strip() for listed in GROUPING.findall(query) for label in listed.split(",")}
        wrong += [f"{name}: no metric has the label {label}" for label in grouped - labels]
        if query.count("(") != query.count(")") or not SELECTOR.search(query):
            wrong.append(f"{name}: {query} is no query")
    assert wrong == []


def test_every_metric_is_in_the_dashboard_or_an_alarm(exported):
    """No figure is exported that is shown nowhere."""
    used = {metric for _, query in queries() for metric, _ in SELECTOR.findall(query)}
    families = {re.sub(r"_(?:bucket|count|sum)$", "", name) for name in exported}
    shown = {re.sub(r"_(?:bucket|count|sum)$", "", name) for name in used}
    assert families - shown == {"zot_artifacts_exporter_info"}


def test_a_text_names_only_labels_that_its_query_leaves(exported):
    """The summary of an alarm and the legend of a panel use labels that exist."""
    texts = [(name, rule["expr"], rule["annotations"]["summary"]) for name, rule in ALARMS.items()]
    texts += [(t, each["expr"], each["legendFormat"]) for t, panel in PANELS.items() for each in panel["targets"]]
    wrong = []
    for name, query, text in texts:
        there = {label for metric, _ in SELECTOR.findall(query) for label in exported.get(metric, ())}
        wrong += [f"{name}: {a or b}" for a, b in LABEL_IN_TEXT.findall(text) if (a or b) not in there]
    assert wrong == []


def test_the_reference_lists_every_metric(families):
    """docs/metrics.md has a line for each metric: its name, its kind, its labels and what it means."""
    lines = []
    for family in sorted(families, key=lambda each: each.name):
        labels = {name for sample in family.samples for name in sample.labels} - {"le"}
        name = f"{family.name}_total" if family.type == "counter" else family.name
        listed = ", ".join(f"`{label}`" for label in sorted(labels)) or "none"
        lines.append(f"| `{name}` | {family.type} | {listed} | {family.documentation} |")
    page = (ROOT / "docs/metrics.md").read_text().splitlines()
    assert [line for line in page if line.startswith("| `zot_artifacts_")] == lines


def test_every_kind_of_finding_has_an_alarm():
    """A kind that is new has an alarm too; only `suspect`, which the second read settles, has none."""
    silent = set(FindingKind)
    for rule in ALARMS.values():
        for operator, kinds in re.findall(r'zot_artifacts_findings\{[^}]*kind(=~|!~|=)"([^"]+)"', rule["expr"]):
            named = {FindingKind(kind) for kind in kinds.split("|")}
            silent -= set(FindingKind) - named if operator == "!~" else named
    silent -= {FindingKind.OVERDUE} if "zot_artifacts_copies_overdue" in ALARMS["ZotCopiesOverdue"]["expr"] else set()
    assert silent == {FindingKind.SUSPECT}


def test_the_classes_of_errors_that_an_alarm_names_exist():
    """A class of errors that is renamed does not silence its alarm."""
    named = re.findall(r'error=~?"([^"]+)"', ALARMS["ZotStoreErrors"]["expr"])[0].split("|")
    todo, known = [StorageError], set[str]()
    while todo:
        todo += todo.pop().__subclasses__()
        known |= {each.__name__ for each in todo}
    assert set(named) <= known


@pytest.mark.parametrize("alarm", ALARMS)
def test_every_alarm_has_a_section_of_the_runbook(alarm):
    """The link of an alarm leads to a section that says what to do, and no section is of an alarm that is gone."""
    assert ALARMS[alarm]["annotations"]["runbook"] == f"docs/runbook.md#{alarm.lower()}"
    sections = re.findall(r"^## (Zot\w+)$", RUNBOOK.read_text(), flags=re.MULTILINE)
    assert alarm in sections
    assert set(sections) <= ALARMS.keys()


def test_the_runbook_names_the_queue_of_each_sweep():
    """A worker of the queue `sweep` runs neither `recover` nor `alarms`: who starts one for them waits in vain."""
    text = RUNBOOK.read_text()
    [named] = re.findall(r"The sweeps (.+) run in the queue `interactive`, all others in the queue `sweep`\.", text)
    sweeps = {spec.kind.removeprefix("sweep."): spec.queue for spec in TASKS.values() if spec.kind.startswith("sweep.")}
    assert set(re.findall(r"`(\w+)`", named)) == {name for name, queue in sweeps.items() if queue == Queue.INTERACTIVE}
    assert set(sweeps.values()) == {Queue.INTERACTIVE, Queue.SWEEP}
    of_recover = text.partition("## ZotJobsLate")[2].partition("## ")[0]
    assert f"a worker of the queue `{sweeps['recover']}`" in of_recover


def test_promtool_takes_every_query(tmp_path):
    """Prometheus' own checker parses the alarms, and the queries of the dashboard as rules."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed: on Debian it is part of the package prometheus")
    rules = [{"record": f"panel:{n}", "expr": query} for n, (_, query) in enumerate(queries())]
    panels = tmp_path / "panels.yaml"
    panels.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    for file in (ROOT / "deploy/prometheus/rules.yaml", panels):
        done = subprocess.run([promtool, "check", "rules", file], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


FIRES: dict[str, tuple[dict[str, str], str]] = {  # series from minute 0 on, and when the alarm must be there
    "ZotArtifactsLost": ({'zot_artifacts_findings{kind="lost",acknowledged="no"}': "0x4 1x60"}, "6m"),
    "ZotBadCopiesStay": (
        {
            'zot_artifacts_findings{store="dr",kind="corrupt",acknowledged="no"}': "1x200",
            'zot_artifacts_findings_since_timestamp_seconds{store="dr",kind="corrupt"}': "0x200",
        },
        "70m",
    ),
    "ZotQueueStuck": (
        {
            'zot_artifacts_queue_oldest_message_seconds{queue="transfer"}': "901x60",
            'zot_artifacts_queue_paused{queue="transfer"}': "0x60",
        },
        "10m",
    ),
    "ZotOutboxOld": (
        {
            'zot_artifacts_outbox_oldest_seconds{queue="transfer"}': "1801x60",
            'zot_artifacts_queue_paused{queue="transfer"}': "0x60",
        },
        "10m",
    ),
    "ZotBeatStopped": ({"unrelated": "1x60"}, "10m"),
    "ZotSweepLate": (
        {
            'zot_artifacts_sweep_last_start_timestamp_seconds{sweep="sweep.verify"}': "0x200",
            'zot_artifacts_sweep_interval_seconds{sweep="sweep.verify"}': "300x200",
        },
        "90m",
    ),
    "ZotStoreBreakerOpen": ({'zot_artifacts_store_breaker_open{store="dr"}': "1 0 0 1 0 0 1 0 0 1 0 0 1x60"}, "20m"),
    "ZotStoreErrors": ({'zot_artifacts_store_errors_total{store="dr",error="OutOfSpace"}': "0x9 1x60"}, "16m"),
    "ZotWorkersDie": ({'zot_artifacts_lease_recoveries_total{kind="page"}': "0x9 8x60"}, "15m"),
    "ZotBrokerFull": (
        {
            'zot_artifacts_broker_memory_bytes{kind="used"}': "81x60",
            'zot_artifacts_broker_memory_bytes{kind="limit"}': "100x60",
        },
        "10m",
    ),
    "ZotRejectedMessages": ({'zot_artifacts_rejected_messages_total{reason="body"}': "0x9 1x60"}, "15m"),
}
SILENT: dict[str, dict[str, str]] = {  # what must raise no alarm of this name within two hours
    "ZotQueueStuck": {
        'zot_artifacts_queue_oldest_message_seconds{queue="transfer"}': "9000x120",
        'zot_artifacts_queue_paused{queue="transfer"}': "1x120",
    },
    "ZotOutboxOld": {
        'zot_artifacts_outbox_oldest_seconds{queue="transfer"}': "9000x120",
        'zot_artifacts_queue_paused{queue="transfer"}': "1x120",
    },
    "ZotBrokerFull": {
        'zot_artifacts_broker_memory_bytes{kind="used"}': "81x120",
        'zot_artifacts_broker_memory_bytes{kind="limit"}': "0x120",
    },
    "ZotBeatStopped": {"zot_artifacts_beat_last_tick_seconds": "5x120"},
    "ZotStoreBreakerOpen": {'zot_artifacts_store_breaker_open{store="dr"}': "0x9 1 0x110"},
    "ZotWorkersDie": {'zot_artifacts_lease_recoveries_total{kind="page"}': "0x9 3x110"},
}
PAUSED = 'zot_artifacts_queue_paused{{queue="{}"}}'
WAITING = {
    'zot_artifacts_outbox_oldest_seconds{queue="interactive"}': "60x60",
    'zot_artifacts_outbox_oldest_seconds{queue="transfer"}': "900x60",
    'zot_artifacts_outbox_oldest_seconds{queue="sweep"}': "9000x60",
    'zot_artifacts_copies_overdue{store="primary"}': "7000x60",
    'zot_artifacts_copies_overdue{store="dr"}': "5000x60",
}
SCALED: dict[str, tuple[float, float]] = {"zot-worker": (900, 60), "zot-sweeper": (12_000, 0)}
"""What KEDA is told of `WAITING`, and what while the queues `transfer` and `sweep` are paused."""
TOLD: dict[str, tuple[dict[str, str], dict[str, str], str]] = {  # series, labels and summary of the alarm
    "ZotRejectedMessages": (
        {'zot_artifacts_rejected_messages_total{reason="body"}': "0x9 1x60"},
        {"reason": "body"},
        "Messages that were rejected within an hour as body: 1.",
    ),
    "ZotWorkersDie": (
        {'zot_artifacts_lease_recoveries_total{kind="page"}': "0x9 8x60"},
        {},
        "Jobs taken over within an hour from workers that had died: 8.",
    ),
    "ZotFiguresMissing": (
        {"unrelated": "1x60"},
        {},
        "The figures of all groups are missing: the exporter, or the server that has them, does not answer.",
    ),
}


def test_an_alarm_fires_for_what_it_is_about_and_for_nothing_else(tmp_path):
    """Prometheus' own test of rules raises each alarm for its figures, and none for those of a normal day.

    What an alarm tells has whole numbers of things that can be counted, and names what is missing. KEDA adds no worker
    for a paused queue or for one that the worker does not serve, and is told nothing where the figures are missing.
    """
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed: on Debian it is part of the package prometheus")
    cases = [(name, series, at, True) for name, (series, at) in FIRES.items()]
    cases += [(name, series, "110m", False) for name, series in SILENT.items()]
    tests = [
        {
            "interval": "1m",
            "input_series": [{"series": series, "values": values} for series, values in given.items()],
            "promql_expr_test": [
                {
                    "expr": f'count(ALERTS{{alertname="{name}",alertstate="firing"}})',
                    "eval_time": at,
                    "exp_samples": [{"labels": "{}", "value": 1}] if fires else [],
                }
            ],
        }
        for name, given, at, fires in cases
    ]
    tests += [
        {
            "interval": "40s",  # not at each evaluation, so that Prometheus extrapolates an increase
            "input_series": [{"series": name, "values": values} for name, values in given.items()],
            "alert_rule_test": [
                {
                    "alertname": alarm,
                    "eval_time": "15m",
                    "exp_alerts": [
                        {
                            "exp_labels": {**labels, **ALARMS[alarm]["labels"]},
                            "exp_annotations": {**ALARMS[alarm]["annotations"], "summary": summary},
                        }
                    ],
                }
            ],
        }
        for alarm, (given, labels, summary) in TOLD.items()
    ]
    tests += [
        {
            "interval": "1m",
            "input_series": [{"series": series, "values": values} for series, values in given.items()],
            "promql_expr_test": [
                {
                    "expr": query,
                    "eval_time": "10m",
                    "exp_samples": [] if value is None else [{"labels": "{}", "value": value}],
                }
            ],
        }
        for name, query in scaling()
        for given, value in (
            ({**WAITING, **dict.fromkeys(map(PAUSED.format, Queue), "0x60")}, SCALED[name][0]),
            ({**WAITING, PAUSED.format(Queue.INTERACTIVE): "0x60",
              **dict.fromkeys(map(PAUSED.format, (Queue.TRANSFER, Queue.SWEEP)), "1x60")}, SCALED[name][1]),
            (dict.fromkeys(map(PAUSED.format, Queue), "0x60"), None),
        )
    ]  # fmt: skip
    file = tmp_path / "alarms.yaml"
    rules = str(ROOT / "deploy/prometheus/rules.yaml")
    file.write_text(yaml.safe_dump({"rule_files": [rules], "evaluation_interval": "1m", "tests": tests}))
    done = subprocess.run([promtool, "test", "rules", file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
