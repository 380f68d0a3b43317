# SPDX-License-Identifier: Apache-2.0
"""Some hundred requests that schemathesis makes of our own document; `bench/fuzz_server.py` makes any number."""

from tests.serve.conftest import Running
from tests.serve.fuzzing import Fuzzer, Tally
from tests.thoroughness import times

EACH = times(10, 30)


def test_no_request_breaks_the_server_and_every_answer_is_documented(talker: Running) -> None:
    tally = Tally()
    with Fuzzer(talker.url, tally) as fuzzer:
        for kind in fuzzer.kinds:
            fuzzer.ask(kind, EACH)
    assert tally.cases > 8 * EACH
    assert {name.rsplit(" ", 1)[1] for name in tally.statuses} >= {"200", "400"}
    talker.wait_until_idle()
