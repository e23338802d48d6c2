"""What descriptions of pods mean. Their texts are those of a real cluster."""

from __future__ import annotations

from typing import Any

import pytest

from gvisor_kernel.runtimes.kubernetes.pod_state import (
    Ending,
    describe_wait,
    explain_end,
    find_advice,
    find_obstacle,
    find_phase,
)


def pod(phase: str, state: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    status: dict[str, Any] = {"phase": phase, **more}
    if state is not None:
        status["containerStatuses"] = [{"name": "kernel", "state": state}]
    return {"metadata": {}, "status": status}


UNSCHEDULABLE = {
    "type": "PodScheduled",
    "status": "False",
    "reason": "Unschedulable",
    "message": "0/3 nodes are available: 3 Insufficient memory.",
}


@pytest.mark.parametrize(
    ("found", "ending"),
    [
        (None, Ending("the pod was deleted")),
        (
            pod("Failed", reason="Evicted", message="Usage exceeds the limit of 64Mi. "),
            Ending("the node has evicted the pod: Usage exceeds the limit of 64Mi"),
        ),
        (
            pod("Failed", {"terminated": {"exitCode": 128, "reason": "OOMKilled"}}),
            Ending("the pod has used more memory than its limit", memory=True),
        ),
        (
            pod("Running", {"terminated": {"exitCode": 3, "reason": "Error"}}),
            Ending("the pod's first process has ended with status 3"),
        ),
        (
            pod("Failed", {"terminated": {"exitCode": 128, "reason": "StartError"}}),
            Ending("the container could not be started"),
        ),
        (
            pod(
                "Pending",
                {"terminated": {"exitCode": 128, "reason": "StartError", "message": "no python3"}},
            ),
            Ending("the container could not be started: no python3"),
        ),
        (
            pod(
                "Pending",
                {
                    "terminated": {
                        "exitCode": 128,
                        "reason": "StartError",
                        "message": "the command\n" * 100 + "no python3" + "!" * 240,
                    }
                },
            ),
            Ending("the container could not be started: …no python3" + "!" * 240),
        ),
        (
            pod("Failed", {"terminated": {"exitCode": 3, "reason": "Error", "message": "a lie"}}),
            Ending("the pod's first process has ended with status 3"),
        ),
        (
            pod("Failed", reason="NodeLost", message="Node n1 which was running the pod is gone"),
            Ending("the pod has failed (NodeLost): Node n1 which was running the pod is gone"),
        ),
        ({"status": None}, Ending("the pod has ended")),
        ({"status": {"containerStatuses": [None], "conditions": [7]}}, Ending("the pod has ended")),
    ],
)
def test_why_a_pod_has_ended(found: dict[str, Any] | None, ending: Ending) -> None:
    assert explain_end(found) == ending


def test_a_preempted_pod_says_so() -> None:
    found = pod(
        "Running",
        {"running": {}},
        conditions=[
            {"type": "DisruptionTarget", "reason": "PreemptionByScheduler", "message": "preempted"}
        ],
    )
    found["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert find_phase(found) == "ended"
    assert explain_end(found).cause == "the pod was deleted: PreemptionByScheduler: preempted"


def test_what_a_pod_waits_for() -> None:
    waiting = pod("Pending", conditions=[UNSCHEDULABLE])
    assert find_phase(waiting) == "waiting"
    assert find_obstacle(waiting) == ""
    assert "3 Insufficient memory" in describe_wait(waiting)
    assert "memory_limit" in find_advice(describe_wait(waiting))
    pull = pod("Pending", {"waiting": {"reason": "ErrImagePull", "message": "not found"}})
    assert find_obstacle(pull) == "ErrImagePull: not found"
    assert "setting image" in find_advice(find_obstacle(pull))
    no_python = pod("Pending", {"terminated": {"exitCode": 128, "reason": "StartError"}})
    assert "python3" in find_advice(find_obstacle(no_python))
    assert find_advice("ContainerCreating") == ""
    assert find_phase(pod("Running", {"running": {}})) == "running"
