"""Say how far each step of a run is, and what is at work now."""

import time
from collections.abc import Sequence

import pandas as pd

from vqa_utils.artifacts.stop import last_seen
from vqa_utils.artifacts.timings import duration
from vqa_utils.running._markers import CHANGED, DONE, MISSING
from vqa_utils.running.runner import Runner
from vqa_utils.running.stages import Step
from vqa_utils.running.terminal.live import last_step

SEEN_SECONDS = 20 * 60.0  # a notebook that was seen so long ago is not taken to be at work


def status_table(runner: Runner, steps: Sequence[Step]) -> pd.DataFrame:
    """One line per step: `notebook`, `parameters`, `state`, `a run would` (its action)."""
    would = {
        DONE: "reuse" if runner.reuse else "run again",
        CHANGED: "run again",
        MISSING: "run",
    }
    lines = []
    for step in steps:
        state = runner.state(step)
        given = step.parameters(runner.paths.run_id)
        parameters = " ".join(f"{name}={value}" for name, value in given.items())
        doing = would[state] if state == DONE else _at_work(runner, step) or would[state]
        lines.append((step.name, parameters, state, doing))
    return pd.DataFrame(lines, columns=["notebook", "parameters", "state", "a run would"])


def _at_work(runner: Runner, step: Step) -> str:
    """Say how far a step is that another command executes; "" if none was seen to."""
    ago = time.time() - last_seen(runner.paths, step.name)
    if ago > SEEN_SECONDS:
        return ""
    log = runner.paths.fold(step.fold or 0).train_log
    text = last_step(log).text if step.stage.trains and log.exists() else ""
    return f"at work, seen {duration(ago)} ago  {text}".rstrip()
