"""The straight pushes that PushT's expert chooses from, what each does to the block, and the ways between them.

The simulator has no inertia (its damping is total) and no friction, and walls aside it is the same everywhere: what
a push does depends only on where the agent begins in the block's own frame, in which direction and how far it goes.
So every push is simulated once, and planning is the composition of rigid motions.

Lengths are in pixels of the 512 x 512 table, times in control steps (0.1 s), poses (x, y, angle). The block's frame
has its origin in the middle of the T's top edge, the stem along +y.
"""

import functools
import warnings
from dataclasses import dataclass

import numpy as np

from offrl.errors import MissingExtraError

RADIUS = 15.0  # of the agent
GAP = 6.0  # between agent and block at the start of a push
CLEARANCE = 18.5  # of the agent's center on its way around the block: its target lags, so corners are cut
CORNER = 22.0  # way-points stand this far out, in x and in y
SPACING = 10.0  # of contact points along the edges
TRAVEL, PUSH, ACCELERATION = 18.0, 10.0, 5.0  # largest speeds of the target, and its acceleration, per step
DWELL = 3  # steps at the end of a push, in which the agent catches up with its target
LENGTHS = np.concatenate([np.arange(GAP + 0.5, 24.0), np.arange(24.0, 160.0, 3.0)])

BOXES = np.array([[-60.0, 60.0, 0.0, 30.0], [-15.0, 15.0, 30.0, 120.0]])  # x from, to, y from, to
CORNERS = np.array(
    [[-60, 0], [60, 0], [60, 30], [15, 30], [15, 120], [-15, 120], [-15, 30], [-60, 30]], float
)
KEYPOINTS = CORNERS[[0, 1, 2, 7, 6, 3, 4, 5]]  # in the order of the environment: bar, then stem
_NORMALS = np.array(
    [[0, -1], [1, 0], [0, 1], [1, 0], [0, 1], [-1, 0], [0, 1], [-1, 0]], float
)  # of the edges
_INNER = (3, 6)  # corners between bar and stem: the agent does not fit into them
NODES = CORNERS[[0, 1, 2, 4, 5, 7]] + CORNER * np.array([[-1, -1], [1, -1], [1, 1], [1, 1], [-1, 1], [-1, 1]])


@dataclass(frozen=True, eq=False)
class Pushes:
    """P contact points x L lengths."""

    starts: np.ndarray  # (P, 2), where the agent's center begins
    directions: np.ndarray  # (P, 2), unit vectors
    motions: np.ndarray  # (P, L, 3), pose of the block afterwards
    steps: np.ndarray  # (L,), duration
    ways: np.ndarray  # (6 + P, 6 + P), shortest ways between nodes and starts around the block
    following: np.ndarray  # (6 + P, 6 + P), first stop on them


def turn(angle: np.ndarray | float) -> np.ndarray:
    """Rotation matrices (..., 2, 2)."""
    c, s = np.cos(angle), np.sin(angle)
    return np.stack([np.stack([c, -s], -1), np.stack([s, c], -1)], -2)


def compose(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The pose (..., 3) of ``second``, given in the frame of ``first``."""
    c, s = np.cos(first[..., 2]), np.sin(first[..., 2])
    x = first[..., 0] + c * second[..., 0] - s * second[..., 1]
    y = first[..., 1] + s * second[..., 0] + c * second[..., 1]
    return np.stack([x, y, first[..., 2] + second[..., 2]], -1)


def relative(frame: np.ndarray, pose: np.ndarray) -> np.ndarray:
    """``pose`` as seen from ``frame``, (..., 3)."""
    c, s = np.cos(frame[..., 2]), np.sin(frame[..., 2])
    x, y = pose[..., 0] - frame[..., 0], pose[..., 1] - frame[..., 1]
    return np.stack([c * x + s * y, c * y - s * x, pose[..., 2] - frame[..., 2]], -1)


def place(pose: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points (M, 2) of the block's frame on the table, (..., M, 2), for poses (..., 3)."""
    placed: np.ndarray = points @ np.swapaxes(turn(pose[..., 2]), -1, -2) + pose[..., None, :2]
    return placed


def distance(points: np.ndarray) -> np.ndarray:
    """Distance of points (..., 2) from the block, 0 inside."""
    x, y = points[..., 0, None], points[..., 1, None]
    dx = np.maximum(np.maximum(BOXES[:, 0] - x, x - BOXES[:, 1]), 0.0)
    dy = np.maximum(np.maximum(BOXES[:, 2] - y, y - BOXES[:, 3]), 0.0)
    nearest: np.ndarray = np.hypot(dx, dy).min(-1)
    return nearest


def is_free(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Whether the straight ways (..., 2) to (..., 2) keep their clearance, (...) bool."""
    share = np.linspace(0.0, 1.0, 60)[:, None]
    points = start[..., None, :] * (1 - share) + end[..., None, :] * share
    return np.asarray((distance(points) >= CLEARANCE).all(-1))


def profile(length: float, speed: float) -> np.ndarray:
    """How far the target has come after each step: bounded speed and acceleration, at rest at the end."""
    done, velocity, out = 0.0, 0.0, []
    while length - done > 1e-9:
        left = length - done
        stopping = np.sqrt(2 * ACCELERATION * left + ACCELERATION**2 / 4) - ACCELERATION / 2
        velocity = max(min(velocity + ACCELERATION, speed, stopping), min(1.0, left))
        done = length if left - velocity <= 0.3 else done + velocity
        out.append(done)
    return np.array(out)


def follow(points: np.ndarray, speed: float) -> np.ndarray:
    """Targets (T, 2) along a polyline (M, 2), its start left out."""
    ends = np.concatenate([[0.0], np.linalg.norm(np.diff(points, axis=0), axis=1).cumsum()])
    done = profile(float(ends[-1]), speed)
    return np.stack([np.interp(done, ends, points[:, axis]) for axis in (0, 1)], -1)


@functools.cache
def pushes() -> Pushes:
    """All pushes, simulated once a process (about two seconds).

    Raises:
        MissingExtraError: gym-pusht is not installed.
    """
    contacts, normals = _contacts()
    starts = contacts + normals * (RADIUS + GAP)
    courses = [np.append(profile(length, PUSH), [length] * DWELL) for length in LENGTHS]
    ways, following = _ways(np.concatenate([NODES, starts]))
    return Pushes(
        starts=starts,
        directions=-normals,
        motions=_simulate(starts, -normals, courses),
        steps=np.array([len(course) for course in courses], float),
        ways=ways,
        following=following,
    )


def _contacts() -> tuple[np.ndarray, np.ndarray]:
    """Points (P, 2) along the edges and outward normals there."""
    points, normals = [], []
    for i, (corner, normal) in enumerate(zip(CORNERS, _NORMALS, strict=True)):
        edge = CORNERS[(i + 1) % 8] - corner
        length = float(np.linalg.norm(edge))
        low = CLEARANCE + 0.5 if i in _INNER else 4.0
        high = length - (CLEARANCE + 0.5 if (i + 1) % 8 in _INNER else 4.0)
        for along in np.linspace(low, high, max(int((high - low) // SPACING) + 1, 2)):
            points.append(corner + edge * along / length)
            normals.append(normal)
    return np.array(points), np.array(normals)


def _simulate(starts: np.ndarray, directions: np.ndarray, courses: list[np.ndarray]) -> np.ndarray:
    """Poses (P, L, 3) of a block that began at the origin, by the environment's own physics and controller."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pygame's
            import pymunk
            from gym_pusht.envs.pusht import PushTEnv
    except ImportError as error:
        raise MissingExtraError("gym-pusht", "pusht") from error
    space = pymunk.Space()
    space.damping = 0.0
    agent = PushTEnv.add_circle(space, (0.0, 0.0), RADIUS)
    block, _ = PushTEnv.add_tee(space, (0.0, 0.0), 0.0)
    out = np.empty((len(starts), len(courses), 3))
    for i, (start, direction) in enumerate(zip(starts.tolist(), directions.tolist(), strict=True)):
        for j, course in enumerate(courses):
            agent.position, agent.velocity = (
                (1e4, 1e4),
                (0.0, 0.0),
            )  # away, so that old contacts are forgotten
            space.step(0.01)
            block.angle, block.position = 0.0, (0.0, 0.0)
            block.velocity, block.angular_velocity = (0.0, 0.0), 0.0
            agent.position = tuple(start)
            for body in (agent, block):
                space.reindex_shapes_for_body(body)
            done = velocity = 0.0
            for target in course.tolist():
                for _ in range(10):
                    velocity += (100.0 * (target - done) - 20.0 * velocity) * 0.01
                    done += velocity * 0.01
                    agent.velocity = (direction[0] * velocity, direction[1] * velocity)
                    space.step(0.01)
            out[i, j] = (block.position.x, block.position.y, block.angle)
    return out


def _ways(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lengths of the shortest ways over the six nodes, and the first stop of each."""
    count = len(points)
    start, end = np.broadcast_arrays(points[:, None], points[None])
    lengths = np.where(is_free(start, end), np.linalg.norm(end - start, axis=-1), np.inf)
    following = np.broadcast_to(np.arange(count), (count, count)).copy()
    for node in range(len(NODES)):
        detour = lengths[:, node, None] + lengths[None, node]
        shorter = detour < lengths - 1e-9
        lengths = np.where(shorter, detour, lengths)
        following = np.where(shorter, following[:, node, None], following)
    return lengths, following
