from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spikeformer_lt.events.augment import affine, cut_out


def picture(size=9):
    return torch.arange(1, size * size + 1).view(1, 1, size, size)


def test_nothing_asked_is_nothing_changed_and_a_new_tensor():
    frames = picture()
    out = affine(frames)
    assert torch.equal(out, frames) and out.data_ptr() != frames.data_ptr()


def test_shifts_move_whole_pixels_and_bring_in_zeros():
    frames = picture(4)
    out = affine(frames, dx=1, dy=2)
    assert torch.equal(out[..., 2:, 1:], frames[..., :2, :3])
    assert out[..., :2, :].sum() == 0 and out[..., 0].sum() == 0


@pytest.mark.parametrize("size", [8, 9])
def test_a_quarter_turn_is_a_quarter_turn(size):
    frames = picture(size)
    assert torch.equal(affine(frames, angle=90), torch.rot90(frames, 1, (-2, -1)))
    assert torch.equal(affine(frames, angle=-90), torch.rot90(frames, -1, (-2, -1)))
    assert torch.equal(affine(frames, angle=180), frames.flip(-1, -2))


def test_a_shear_moves_rows_by_their_distance_from_the_middle():
    frames = torch.zeros(1, 1, 9, 9, dtype=torch.int64)
    frames[..., 4] = 1  # a vertical line
    out = affine(frames, shear_x=0.5)[0, 0]
    assert out.sum(1).tolist() == [1] * 9
    places = out.argmax(1)
    # Half a column a row, the upper rows to the right, the middle one left alone.
    assert torch.equal(places - 4, torch.tensor([2, 2, 1, 1, 0, 0, -1, -1, -2])) or torch.equal(
        places - 4, torch.tensor([2, 1, 1, 0, 0, -1, -1, -2, -2])
    )


@pytest.mark.parametrize(
    "change", [{"angle": 17.0}, {"angle": -30.0}, {"shear_x": 0.29}, {"dx": 4}, {"dy": -3}]
)
def test_torchvision_agrees_but_for_ties(change):
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.functional import affine as theirs
    from torchvision.transforms.functional import rotate

    frames = torch.randint(0, 9, (2, 2, 64, 64)).float()
    ours = affine(frames, **change)
    if "angle" in change:
        other = rotate(frames, change["angle"], InterpolationMode.NEAREST)
    else:
        shear = torch.atan(torch.tensor(change.get("shear_x", 0.0))).rad2deg().item()
        other = theirs(
            frames, 0.0, [change.get("dx", 0), change.get("dy", 0)], 1.0, [shear, 0.0],
            InterpolationMode.NEAREST,
        )  # fmt: skip
    assert (ours != other).float().mean() < 0.02


@given(
    st.integers(1, 12), st.integers(1, 12), st.floats(-180, 180), st.floats(-1, 1),
    st.integers(-15, 15), st.integers(-15, 15),
)  # fmt: skip
def test_all_frames_move_alike_and_values_are_moved_never_mixed(h, w, angle, shear, dx, dy):
    frame = torch.arange(1, h * w + 1).view(h, w)
    frames = torch.stack([frame, frame * 2, frame * 0])[:, None]
    out = affine(frames, angle=angle, shear_x=shear, dx=dx, dy=dy)
    assert out.shape == frames.shape and out.dtype == frames.dtype
    assert torch.equal(out[1], out[0] * 2) and not out[2].any()
    assert set(out[0].flatten().tolist()) <= {0, *frame.flatten().tolist()}


def test_a_rectangle_goes_at_all_times_and_may_reach_over_the_edge():
    frames = torch.ones(3, 2, 5, 6)
    out = cut_out(frames, 1, 2, 2, 3)
    assert out.sum(dim=(0, 1)).eq(0).sum() == 6 and not out[:, :, 1:3, 2:5].any()
    assert cut_out(frames, 4, 5, 9, 9).eq(0).sum() == 6
    assert cut_out(frames, -3, -3, 4, 4).eq(0).sum() == 6
    assert torch.equal(cut_out(frames, -5, 0, 3, 3), frames)
    assert frames.all()
