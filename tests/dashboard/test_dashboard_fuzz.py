"""The API against what its own description allows and forbids: requests made by schemathesis, none of which may be answered by a fault of ours."""

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance, status_code_conformance
from tests.dashboard.asking import TOKEN
from tests.dashboard.made_runs import small_run

from penstock.dashboard.access import Access
from penstock.dashboard.app import build_app

CHECKS = (not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance)
HEADERS = {"Host": "127.0.0.1", "X-Penstock-Token": TOKEN}


@pytest.fixture(scope="module")
def schema(tmp_path_factory):
    """The description, served from a folder with a run and one that is damaged."""
    folder = tmp_path_factory.mktemp("runs")
    run = small_run(folder, "small", steps=6, ranks=1, layers=1)
    run.snapshot(6)
    run.alert("straggler", 3)
    (small_run(folder, "broken", steps=3, ranks=1, layers=1).path / "run.json").write_text("{torn")
    access = Access("127.0.0.1", TOKEN)
    access.actions._most = 1e9
    return schemathesis.openapi.from_asgi("/api/v1/openapi.json", build_app(folder, access), headers=HEADERS)


@pytest.mark.slow
def test_every_request_is_answered_as_described(schema):
    operations = [found.ok() for found in schema.exclude(path_regex="/live$").get_all_operations()]
    assert len(operations) > 8

    for operation in operations:

        @settings(max_examples=30, phases=[Phase.generate], suppress_health_check=list(HealthCheck), deadline=None)
        @given(case=operation.as_strategy(), known=st.booleans())
        def ask(case, known):
            if known and "id" in (case.path_parameters or {}):
                case.path_parameters["id"] = "small"
            if isinstance(case.body, dict):
                case.body.pop("confirm", None)  # what is done is the business of other tests
            case.call_and_validate(checks=CHECKS, headers=HEADERS)

        ask()
