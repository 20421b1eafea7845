"""What a finished run leaves for a blend, without its notebooks."""

import dataclasses

import numpy as np
import pandas as pd
from korean_challenge import write_korean_challenge
from scipy.special import softmax

from vqa_utils.artifacts.files import write_csv, write_json
from vqa_utils.artifacts.paths import RunPaths
from vqa_utils.artifacts.probabilities import write_probabilities
from vqa_utils.config import to_dict
from vqa_utils.data.fingerprint import data_hash
from vqa_utils.metrics import one_hot
from vqa_utils.presets import preset

LETTERS = list("abcd")


class RunWriter:
    """Writes finished runs over one challenge of 24 train and 8 test rows."""

    def __init__(self, data_folder):
        self.config = preset("demo", data=str(write_korean_challenge(data_folder)))
        self.train = pd.read_csv(data_folder / "train.csv", dtype=str)
        self.test = pd.read_csv(data_folder / "test.csv", dtype=str)

    def __call__(self, name, sure=1.0, seed=0, oof_ids=None, data_hash_seen=None, **changes):
        """Write one run; `sure` is how far the right letter's logit stands above the others.

        `data_hash_seen` is what its marker says of the data; by default the truth.
        """
        paths, config = RunPaths(name), dataclasses.replace(self.config, **changes)
        oof_ids = self.train["id"] if oof_ids is None else oof_ids
        rng = np.random.default_rng(seed)
        folds = {"id": self.train["id"], "group": self.train["path"], "fold": np.arange(24) % 3}
        marker = {
            "config": config.hash_for("05_ensemble"),
            "data": data_hash_seen or data_hash(config),
            "inputs": {},
            "outputs": {},
        }
        write_json(paths.config, to_dict(config))
        write_csv(paths.folds, pd.DataFrame(folds))
        write_json(paths.stages / "05_ensemble.json", marker)
        answers = self.train.set_index("id")["answer"].loc[oof_ids]
        oof_logits = rng.normal(size=(len(oof_ids), 4)) + sure * one_hot(answers)
        write_probabilities(paths.ensemble / "probs_oof.csv", distributions(oof_ids, oof_logits))
        test = distributions(self.test["id"], rng.normal(size=(len(self.test), 4)))
        write_probabilities(paths.ensemble / "probs_test.csv", test)
        for fold in config.adapter_numbers:  # a blend reads nothing of them, but they must be there
            write_probabilities(paths.fold(fold).probs("test"), test)
        return paths


def distributions(ids, logits):
    return pd.DataFrame(softmax(logits, axis=1), columns=LETTERS).assign(id=list(ids))
