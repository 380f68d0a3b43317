# SPDX-License-Identifier: Apache-2.0
"""A search on a Ray cluster of two nodes, one of which is killed midway: no trial is lost or finished twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

ray = pytest.importorskip("ray", reason="Ray is an extra: pip install 'open-autoglm[ray]'")

from ray.cluster_utils import Cluster  # noqa: E402 - only where there is a ray

from open_autoglm.search.plan import plan_by_steps  # noqa: E402
from open_autoglm.search.ray_executor import RayExecutor  # noqa: E402
from open_autoglm.search.tuner import Tuner  # noqa: E402
from tests.search.trial_benches import OPENED_BY, Quiet, small_space  # noqa: E402

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(280)
@pytest.mark.thorough
def test_a_node_that_dies_takes_no_trial_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "0")
    monkeypatch.setenv("RAY_raylet_start_wait_time_s", "200")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    killed: list[int] = []
    rungs: list[int] = []
    try:
        doomed: Any = cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        ray.init(address=cluster.address, log_to_driver=False)

        class Killer(Quiet):
            def judged(self, rung: Any) -> None:
                rungs.append(rung.trial)
                if len(rungs) == 3 and not killed:
                    killed.append(rung.trial)
                    doomed.kill_raylet(check_alive=False)

        watcher = Killer()
        with RayExecutor(OPENED_BY, {}, count=2) as executor:
            assert executor.capacity == 2
            plan = plan_by_steps(40, 4, parallel=2)
            tuner = Tuner(tmp_path, small_space(), plan, executor, mean_length=8.0, watcher=watcher)
            outcome = tuner.run()
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert killed
    assert sorted(watcher.finished_trials) == [0, 1, 2, 3]
    entries = tuner.entries()
    assert [entry.name for entry in entries] == [f"trial {number}" for number in range(4)]
    assert all(entry.state in ("complete", "pruned") for entry in entries)
    assert (outcome.folder / "checkpoint.safetensors").exists()
