"""What the planner believes about pushes, against the environment itself."""

import numpy as np
import pytest

from offrl.evaluation.environments import make_env
from offrl.evaluation.pusht_pushes import (
    CLEARANCE,
    CORNERS,
    GAP,
    KEYPOINTS,
    LENGTHS,
    NODES,
    RADIUS,
    compose,
    distance,
    follow,
    is_free,
    place,
    profile,
    pushes,
    relative,
)

ANYWHERE = np.array([250.0, 230.0, 2.1])


@pytest.fixture(scope="module")
def library():
    return pushes()


def test_keypoints_are_the_environments(library):
    env = make_env("pusht-keypoints")
    flat, _ = env.reset(seed=3)
    block = env.unwrapped.block
    pose = np.array([*block.position, block.angle])
    np.testing.assert_allclose(place(pose, KEYPOINTS).ravel(), flat[2:], atol=1e-3)
    env.close()


def test_a_push_does_the_same_anywhere_on_the_table(library):
    """A simulated push in the block's frame, and the environment's own controller elsewhere and turned."""
    env = make_env("pusht-state").unwrapped
    for contact, length in ((0, 30), (8, 45), (20, 20), (40, 50)):
        env.reset(seed=0)
        start = place(ANYWHERE, library.starts[contact][None])[0]
        env.agent.position, env.agent.velocity = tuple(start), (0, 0)
        env.block.angle = ANYWHERE[2]
        env.block.position, env.block.velocity, env.block.angular_velocity = tuple(ANYWHERE[:2]), (0, 0), 0
        for body in (env.agent, env.block):
            env.space.reindex_shapes_for_body(body)
        end = place(ANYWHERE, (library.starts + library.directions * LENGTHS[length])[contact][None])[0]
        for target in [*follow(np.stack([start, end]), 10.0), end, end, end]:
            env.step(target)
        got = np.array([*env.block.position, env.block.angle])
        expected = compose(ANYWHERE, library.motions[contact, length])
        np.testing.assert_allclose(got, expected, atol=0.02)
        assert np.abs(got - ANYWHERE).max() > 0.05


def test_relative_undoes_compose():
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 10, 3))
    np.testing.assert_allclose(relative(first, compose(first, second)), second, atol=1e-12)


def test_distance_from_the_t():
    """Above the bar, beside the stem, at a corner (3-4-5), inside."""
    points = np.array([[0.0, -7.0], [25.0, 80.0], [63.0, -4.0], [0.0, 100.0]])
    np.testing.assert_allclose(distance(points), [7.0, 10.0, 5.0, 0.0])
    assert not is_free(np.array([-100.0, 15.0]), np.array([100.0, 15.0]))
    assert is_free(np.array([-100.0, -CLEARANCE - 1]), np.array([100.0, -CLEARANCE - 1]))


def test_pushes_start_beside_the_block_and_never_in_its_inner_corners(library):
    gaps = distance(library.starts)
    assert gaps.min() > CLEARANCE
    assert np.median(gaps) == pytest.approx(RADIUS + GAP)
    assert (distance(NODES) > CLEARANCE).all()
    assert len(library.starts) == len(library.directions) == len(library.motions)
    np.testing.assert_allclose(np.linalg.norm(library.directions, axis=1), 1.0)


def test_ways_around_the_block_are_no_shorter_than_straight_and_obey_the_triangle(library):
    points = np.concatenate([NODES, library.starts])
    straight = np.linalg.norm(points[:, None] - points[None], axis=-1)
    assert np.isfinite(library.ways).all()
    assert (library.ways >= straight - 1e-9).all()
    np.testing.assert_allclose(library.ways, library.ways.T, atol=1e-9)


def test_a_target_never_jumps():
    """At most 18 pixels a step, speeding up by at most 5, at rest at the end, nowhere else but on the way."""
    targets = follow(np.array([[0.0, 0.0], [100.0, 0.0], [100.0, 50.0]]), 18.0)
    done = profile(150.0, 18.0)
    speeds = np.diff(done, prepend=0.0)
    assert speeds.max() <= 18.0 + 1e-9
    assert np.diff(speeds, prepend=0.0).max() <= 5.0 + 1e-9
    assert speeds.min() > 0
    assert speeds[-1] <= 5.0 + 1e-9
    assert targets[-1].tolist() == [100.0, 50.0]
    assert ((targets[:, 1] == 0) | (targets[:, 0] == 100)).all()


def test_the_corners_are_the_ts():
    """Area by the shoelace formula: 120 x 30 + 30 x 90."""
    x, y = CORNERS.T
    assert abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2 == 120 * 30 + 30 * 90
