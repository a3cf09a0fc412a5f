"""A private round, run by the real client, killed at random points: no step is ever made that the ledger does not hold.

WARDROUND_KILLS says how often, 20 unless told; `make privacy` takes 200.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

KILLS = int(os.environ.get("WARDROUND_KILLS", "20"))

# Kills a training process again and again; each is forked from one that has served a round, and answers
# the round that is due under an attempt of its own. Optimiser steps are counted in a file, just before they are made.
KILLER = """
import json, os, random, signal, sys, time, traceback
from pathlib import Path
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook
from common.config.rundocument import issue
from client.train.answer import answer
from common.learning.checkpoint import pack
from common.config import sha256_of
from common.errors import PrivacyError
from common.learning.network import build_model
from common.privacy.guarantee import plan
from common.wire.messages import TrainRequest
from simulations.scenarios.homes import make_site
from tests.simulations.tiny import tiny_run, tiny_site

folder, kills = Path(sys.argv[1]), int(sys.argv[2])
torch.set_num_threads(1)
run = tiny_run(
    training={"local-steps": 8}, federation={"rounds": 250},
    privacy={"target-epsilon": 8.0, "sampling-rate": 0.5, "crops-per-patient": 1},
)
site = make_site(folder, tiny_site(folder / "data", "north", patients=10))
site = type(site)(site.home, site.config, site.policy.model_copy(update={"lifetime_epsilon": 1000.0}), site.key)
cohort = site.cohort(run)
plan(run, cohort.declared_size)
weights = pack(build_model(run).state_dict())
counter = os.open(folder / "steps", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
register_optimizer_step_pre_hook(lambda *_: os.write(counter, b"s") and None)

def serve(round_, attempt):
    answer(TrainRequest(sha256_of(run), round_, {"weights": weights}), issue(run), site, attempt)

def start(round_, attempt):
    if (child := os.fork()) == 0:
        try:
            serve(round_, attempt)
            os._exit(0)
        except PrivacyError as error:
            os._exit(3 if error.code == "bad-request" else 1)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return child

def state():
    recorded = sum(steps for _, _, steps in site.ledger.history(cohort.cohort_id))
    return recorded, (folder / "steps").stat().st_size

lengths = []
for attempt in range(3):
    began = time.monotonic()
    serve(1, f"whole-{attempt}")
    lengths.append(time.monotonic() - began)
round_, points = 2, []
for number in range(kills):
    before = state()
    child = start(round_, f"killed-{number}")
    time.sleep(random.uniform(0, 1.2 * min(lengths)))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    after, again = state(), None
    point = {"killed": status == signal.SIGKILL, "charged": after[0] - before[0], "made": after[1] - before[1]}
    if number % 2:  # the same attempt once more, as a message that is delivered twice would ask for it
        again = os.waitstatus_to_exitcode(os.waitpid(start(round_, f"killed-{number}"), 0)[1])
    final = state()
    round_ += 0 in (status, again)
    points.append(point | {"again": again, "made-again": final[1] - after[1], "recorded": final[0], "spent": final[1]})
before = state()
status = os.waitpid(start(round_, "after"), 0)[1]
after = state()
print(json.dumps({"points": points, "status": status, "charged": after[0] - before[0], "made": after[1] - before[1]}))
"""


def test_the_ledger_never_holds_less_than_was_spent_whenever_a_round_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLER, str(tmp_path), str(KILLS)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found = json.loads(output.stdout)
    points = found["points"]
    assert len(points) == KILLS
    assert all(point["recorded"] >= point["spent"] for point in points)
    # Charged whole or not at all, and never with a step before it.
    assert {point["charged"] for point in points} <= {0, 8}
    assert all(point["made"] <= point["charged"] for point in points)
    assert sum(point["killed"] for point in points) > KILLS / 2
    assert any(0 < point["made"] < 8 for point in points), "no kill fell into the steps"
    # The same attempt is trained a second time only where the first had not begun.
    repeated = [point for point in points if point["again"] is not None]
    assert {(point["again"], point["made-again"]) for point in repeated} <= {(0, 8), (3, 0)}
    assert all(point["again"] == 3 for point in repeated if point["made"])
    # The round that the last kill left behind is done again, and charged for it.
    assert (found["status"], found["charged"], found["made"]) == (0, 8, 8)
