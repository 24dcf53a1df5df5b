"""The data and the queue of the methods that need a trainer of their own in the table of equal training."""

import nibabel as nib
import numpy as np
import pytest

from benchmarks import equal_training
from benchmarks.campaign_jobs import read_queue
from benchmarks.experiments import REPOSITORY
from custom_components.data.lists import load_list


@pytest.fixture
def slices(tmp_path):
    """The folder of slices of two people, whose structure is shifted by one voxel."""
    maps = np.zeros((2, 16, 20, 24), np.uint8)
    for person in range(2):
        maps[person, 4 + person : 9, 5:12, 6:18] = 1
    (tmp_path / "labels.csv").write_text("id,t1_prior_mean,t1_prior_mean_spread\n0,0,0\n17,100,5\n")
    np.savez(tmp_path / "maps.npz", maps=maps, ids=[0, 17], split=["training", "validation"])
    words = [str(tmp_path / "maps.npz"), "DATA", "OUT", "--table", str(tmp_path / "labels.csv"), "--cache", "CACHE"]
    equal_training.main([*words, "--slices", str(tmp_path / "slices")])
    return tmp_path / "slices"


def test_slices_have_ids_places_and_levels(slices):
    for person, section in enumerate(("training", "validation")):
        items = load_list(slices / "datalist.json", section)
        assert [item["group"] for item in items] == [6, 10, 14]
        image = nib.load(items[1]["label"])
        data = np.asarray(image.dataobj)
        assert data.shape == (16, 20, 1)
        assert set(np.unique(data)) == {0, 17}
        first = np.argwhere(data)[0]
        assert first[:2].tolist() == [4 + person, 5]
        # The middle of the map is the world's origin, and slices keep their height.
        assert (image.affine @ [*first, 1])[:3].tolist() == [4 + person - 7.5, 5 - 9.5, 10 - 11.5]
    assert (slices / "labels.csv").exists()


def test_the_queue_gives_each_method_the_same_time(slices):
    places = {name: str(slices) for name in ("slices", "labelmaps", "runs")}
    jobs = read_queue(REPOSITORY / "benchmarks" / "equal_training.json", places).jobs
    minutes: dict[str, float] = {}
    for job in jobs:
        minutes[job.bundle] = minutes.get(job.bundle, 0) + job.minutes
    assert set(minutes.values()) == {5}
    assert not set(minutes) & set(equal_training.NAMES)
