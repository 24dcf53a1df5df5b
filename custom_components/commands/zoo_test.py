"""The unit test that the model zoo wants beside a bundle, written into the exported folder."""

from __future__ import annotations

import json

from ..vocabulary import Config

# Small data and few steps, for those ids that a bundle's configs have.
_TINY: Config = {
    "size": [32, 32, 32],
    "spacing": 1.0,
    "center": "image",
    "precision": "float32",
    "pixels": 32,
    "num_frames": 4,
    "num_momenta": 1,
    "iterations": [2, 2, 2],
    "window": [0.0, 1.0, 1.0],
    "conditions": {"ventricles": "numeric"},
    "template_labels": [0, 1, 2, 3, 4],
}

_TEMPLATE = '''"""Training and inference of the bundle {name} on phantoms, as the model zoo's CI runs them.

Copy this file to ci/unit_tests/ of the zoo, beside its `utils.py`, or run it where models/{name} lies:

    python test_{name}.py
"""

import json
import os
import sys
import tempfile
import unittest

from monai.bundle import ConfigWorkflow

BUNDLE_ROOT = os.environ.get("BUNDLE_ROOT", "models/{name}")
sys.path.insert(0, BUNDLE_ROOT)

from scripts.data.phantoms import write_phantom_scans  # noqa: E402

TRAIN = json.loads("""
{train}
""")
INFER = json.loads("""
{infer}
""")
STATISTICS = "id,t1_prior_mean,t1_prior_mean_spread\\n0,5,2\\n1,110,8\\n2,170,8\\n3,60,8\\n4,140,8\\n"
ITEM_KEYS = {keys}
ATTRIBUTES = {attributes}


class Test{title}(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.data_list = write_phantom_scans(self.folder.name, 5, (32, 32, 32))
        with open(self.data_list) as file:
            sections = json.load(file)
        for number, scan in enumerate(sections["training"] + sections["validation"]):
            scan["ventricles"] = 2 + number
        with open(self.data_list, "w") as file:
            json.dump(sections, file)
        with open(os.path.join(self.folder.name, "labels.csv"), "w") as file:
            file.write(STATISTICS)
        pair = sections["validation_pairs"][0]
        item = {{key: os.path.join(self.folder.name, pair[source]) for key, source in ITEM_KEYS.items()}}
        self.item = {{**item, **ATTRIBUTES}}

    def tearDown(self):
        self.folder.cleanup()

    def run_workflow(self, kind, configs, override):
        workflow = ConfigWorkflow(
            workflow_type=kind,
            config_file=[os.path.join(BUNDLE_ROOT, "configs", config) for config in configs],
            logging_file=os.path.join(BUNDLE_ROOT, "configs", "logging.conf"),
            meta_file=os.path.join(BUNDLE_ROOT, "configs", "metadata.json"),
            bundle_root=BUNDLE_ROOT,
            dataset_dir=self.folder.name,
            output_dir=os.path.join(self.folder.name, kind),
            **override,
        )
        workflow.initialize()
        self.assertEqual(workflow.check_properties(), [])
        workflow.run()
        workflow.finalize()
        return os.path.join(self.folder.name, kind)

    def test_train_config(self):
        output = self.run_workflow("train", ["train.json", "smoke.json"], TRAIN)
        self.assertTrue(os.path.isfile(os.path.join(output, "model.pt")))
        self.assertTrue(os.path.isfile(os.path.join(output, "curve.csv")))
{inference}

if __name__ == "__main__":
    unittest.main()
'''

_INFERENCE = """
    def test_infer_config(self):
        output = self.run_workflow("infer", ["inference.json"], {**INFER, "dataset#data": [self.item]})
        names = [name for _, _, files in os.walk(output) for name in files]
        self.assertTrue(any(name.endswith(".nii.gz") for name in names), names)
"""


def unit_test(name: str, train: Config, inference: Config, metadata: Config) -> str:
    """The text of `test_<name>.py`.

    Args:
        name: of the bundle.
        train, inference, metadata: its configs.
    """
    takes = metadata.get("abilities", {}).get("input", "pair")
    keys = {"moving": "moving", "fixed": "fixed"} if takes == "pair" else {"image": "fixed"}
    few: Config = {"affine": "none", "optimize": 0}
    few |= {"save#write": ["warped"], "report#picture": False} if takes in ("pair", "scan") else {}
    return _TEMPLATE.format(
        name=name,
        title="".join(word.capitalize() for word in name.split("_")),
        train=json.dumps({key: value for key, value in _TINY.items() if key in train}, indent=4),
        infer=json.dumps({key: value for key, value in few.items() if key.split("#")[0] in inference}, indent=4),
        inference=_INFERENCE if takes != "answer" else "",  # which is what a registration gives
        keys=json.dumps(keys),
        attributes=json.dumps({"ventricles": 4} if takes == "scan" else {}),
    )
