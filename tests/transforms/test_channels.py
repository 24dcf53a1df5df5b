"""Several channels of one person: one grid, weights, and the comparison of all of them."""

import json
import logging

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from support import run

import custom_components as mz
from custom_components.data.lists import load_list
from custom_components.data.phantoms import phantom_pair
from custom_components.evaluation.overlap import mean_dice
from custom_components.inference.both_ways import _both_masks
from custom_components.inference.registration import first_channels
from custom_components.losses.pair import pair_loss
from custom_components.space.volumes import load_channels
from custom_components.transforms.load import LoadPaird

SIZE = (48, 44)


@pytest.fixture(scope="module")
def people():
    """Two flat phantoms; the first channel shows a disc that both have at one place, the second the anatomy."""
    pair = phantom_pair(SIZE)
    x = torch.stack(torch.meshgrid(*(torch.linspace(-1, 1, n) for n in SIZE), indexing="ij"))
    disc = (x.square().sum(0) < 0.8).float()[None]
    found = {role: torch.cat([disc, pair[role][0]]) for role in ("moving", "fixed")}
    return found | {key: pair[key][0] for key in ("label_moving", "label_fixed")}


def dice(labels, target):
    return float(mean_dice(labels[None].long(), target[None].long()))


def registered(people, **options):
    images = {role: MetaTensor(people[role]) for role in ("moving", "fixed")}
    return mz.optimize(
        images["moving"],
        images["fixed"],
        label_moving=MetaTensor(people["label_moving"]),
        affine="none",
        spacing=1.0,
        iterations=[30, 20, 10],
        **{"report#picture": False},
        **options,
    )


def test_the_second_channel_registers_where_the_first_is_flat(people):
    before = dice(people["label_moving"], people["label_fixed"])
    both = registered(people)
    assert both.warped.shape == (2, *SIZE)
    assert dice(both.warped_label.as_tensor(), people["label_fixed"]) > before + 0.05
    first = registered({**people, "moving": people["moving"][:1], "fixed": people["fixed"][:1]})
    assert abs(dice(first.warped_label.as_tensor(), people["label_fixed"]) - before) < 0.02


def test_a_channel_of_weight_zero_does_not_count(people):
    found = registered(people, channel_weights=[1.0, 0.0])
    first = registered({**people, "moving": people["moving"][:1], "fixed": people["fixed"][:1]})
    torch.testing.assert_close(found.ddf.as_tensor(), first.ddf.as_tensor(), atol=1e-3, rtol=1e-3)


def test_the_loss_is_the_weighted_mean_over_channels(people):
    batch = {role: people[role][None] for role in ("moving", "fixed")}
    ddf = torch.zeros(1, 2, *SIZE)
    pred = {"ddf": ddf, "svf": ddf, "warped": batch["moving"]}
    loss = pair_loss(0.0)
    weights = torch.tensor([1.0, 3.0]).view(1, 2, 1, 1)
    parts = [
        loss({**pred, "warped": pred["warped"][:, [c]]}, {key: image[:, [c]] for key, image in batch.items()})
        for c in (0, 1)
    ]
    torch.testing.assert_close(loss(pred, {**batch, "channel_weights": weights}), (parts[0] + 3 * parts[1]) / 4)


def test_the_network_registers_the_first_channel_and_its_refinement_all(people):
    """With 2-D weights; the answers alone of one and of two channels are the same, refined they are not."""
    images = [MetaTensor(people[role]) for role in ("moving", "fixed")]
    firsts = [image[:1] for image in images]
    fields = []
    for optimize in (0, 5):
        registrar = mz.Registrar("synthmorph", optimize=optimize, affine="none", spacing=1.0, average=[])
        fields.append([registrar(*pair).ddf.as_tensor() for pair in (images, firsts)])
    torch.testing.assert_close(*fields[0], atol=1e-4, rtol=1e-4)
    assert (fields[1][0] - fields[1][1]).abs().max() > 0.1


def saved(folder, name, array, affine):
    nib.save(nib.Nifti1Image(array, affine), folder / f"{name}.nii.gz")
    return str(folder / f"{name}.nii.gz")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A T1 and a T2 of two people; the T2s lie on coarser grids that are shifted."""
    folder, generator = tmp_path_factory.mktemp("files"), np.random.default_rng(0)
    found = {}
    for role in ("moving", "fixed"):
        smooth = np.kron(generator.random((6, 5, 4)), np.ones((4, 4, 4))).astype("f4")
        found[role] = [
            saved(folder, f"{role}_t1", smooth, np.eye(4)),
            saved(folder, f"{role}_t2", 5 - smooth[::2, ::2, ::2], nib.affines.from_matvec(2 * np.eye(3), [0.5] * 3)),
        ]
    return found


def test_channels_lie_on_the_grid_of_the_first(files):
    volume = load_channels(files["fixed"])
    assert volume.data.shape == (2, 24, 20, 16)
    inner = (slice(2, -2),) * 3
    assert np.corrcoef(volume.data[0][inner].ravel(), volume.data[1][inner].ravel())[0, 1] < -0.9
    pair = {role: paths[0] for role, paths in files.items()}
    item = LoadPaird()(pair | {f"channels_{role}": paths[1:] for role, paths in files.items()})
    assert item["image"].shape == (4, 24, 20, 16)
    assert torch.equal(item["channel_weights"].flatten(), torch.ones(2))
    assert item["moving"].amin((1, 2, 3)).tolist() == [0, 0]  # each channel has its own scale


def test_the_command_takes_channels_with_commas_and_lists_take_lists(files, tmp_path):
    words = ["optimize", ",".join(files["moving"]), ",".join(files["fixed"]), "-o", tmp_path / "out"]
    assert run(*words, "--channel_weights", "1,0.5", "--affine", "none", "--iterations", "[1,1,1]") is None
    (folder,) = (path for path in (tmp_path / "out").iterdir() if path.is_dir())
    assert folder.name == "fixed_t1__moving_t1"
    assert nib.load(folder / "warped.nii.gz").shape == (24, 20, 16, 2)
    (tmp_path / "list.json").write_text(json.dumps({"test": [{**files, "channel_weights": [1, 0.5]}]}))
    (item,) = load_list(tmp_path / "list.json", "test")
    assert (item["moving"], item["channels_moving"]) == (files["moving"][0], files["moving"][1:])
    assert LoadPaird()(item)["channel_weights"].flatten().tolist() == [1.0, 0.5]
    message = run("optimize", f"{files['moving'][0]},nowhere.nii.gz", files["fixed"][0], "-o", tmp_path / "out")
    assert "nowhere.nii.gz: there is no such file" in message


def test_a_network_sees_the_first_channel_and_the_log_says_so(people, caplog):
    image = torch.cat([people["moving"], people["fixed"]])[None]
    with caplog.at_level(logging.INFO):
        shown = first_channels(image)
    assert torch.equal(shown, image[:, [0, 2]])
    assert "the network sees the first of 2 channels" in caplog.text
    assert first_channels(shown) is shown


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"fixed": slice(0, 1)}, "as many channels of both images, got 2 moving and 1 fixed"),
        ({"channel_weights": [1.0]}, "a weight for each of 2 channels"),
        ({"channel_weights": [0.0, 0.0]}, "a channel's weight above 0"),
        ({"channel_weights": [1.0, -1.0]}, "a channel's weight to be"),
    ],
    ids=["numbers", "weights", "zero", "negative"],
)
def test_channels_that_do_not_go_together_are_refused(change, said, people):
    options = {key: value for key, value in change.items() if key == "channel_weights"}
    fixed = people["fixed"][change.get("fixed", slice(None))]
    with pytest.raises(ValueError, match=said):
        registered({**people, "fixed": fixed}, **options)


def test_weights_go_along_when_a_pair_is_registered_both_ways():
    weights = torch.ones(1, 2, 1, 1)
    assert _both_masks({"channel_weights": weights})["channel_weights"].shape == (2, 2, 1, 1)
    masks = _both_masks({"channel_weights": weights, "mask_fixed": torch.zeros(1, 1, *SIZE)})
    assert masks["mask_moving"][1].sum() == 0
    assert set(masks) == {"mask_moving", "mask_fixed", "channel_weights"}
