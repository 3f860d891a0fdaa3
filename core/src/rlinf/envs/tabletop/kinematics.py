"""Closed-form kinematics of the six-joint arm: yaw, shoulder, elbow, and three intersecting wrist joints.

The hand's frame equals the world's when its fingers point straight down. With a = azimuth of the arm, b =
sum of the three pitch joints, c the tilt and g the spin of the wrist, the hand's rotation is Rz(a) Ry(b)
Rx(c) Rz(g); the commanded one is Rz(yaw) Ry(pitch) Rx(roll). The joints' zeros are a quarter turn off in a
and g: at zero the arm points at the viewer and the hand is straight.
"""

from __future__ import annotations

from math import acos, asin, atan2, cos, hypot, pi, sin, sqrt
from typing import Final

#: Position of the base on the table, height of the shoulder, upper arm, forearm, wrist to grasp centre (m).
BASE_Y: Final = 0.40
SHOULDER_HEIGHT: Final = 0.24
UPPER_ARM: Final = 0.36
FOREARM: Final = 0.36
HAND_LENGTH: Final = 0.13

Vector = tuple[float, float, float]
Joints = tuple[float, float, float, float, float, float]


def inverse(position: Vector, rpy: Vector) -> Joints:
    """Joint angles (rad) that put the grasp centre at `position` (m) with rotation `rpy` (rad), elbow up.

    A position out of reach gives the stretched arm that points to it.
    """
    cr, sr, cp, sp = cos(rpy[0]), sin(rpy[0]), cos(rpy[1]), sin(rpy[1])
    cy, sy = cos(rpy[2]), sin(rpy[2])
    # Third column of Rz(yaw) Ry(pitch) Rx(roll): the hand's axis, from the grasp centre to the wrist.
    axis = (cy * sp * cr + sy * sr, sy * sp * cr - cy * sr, cp * cr)
    x = position[0] + HAND_LENGTH * axis[0]
    y = position[1] + HAND_LENGTH * axis[1] - BASE_Y
    z = position[2] + HAND_LENGTH * axis[2] - SHOULDER_HEIGHT
    yaw = atan2(y, x)
    reach = min(sqrt(x * x + y * y + z * z), 0.999 * (UPPER_ARM + FOREARM))
    bend = (reach * reach - UPPER_ARM**2 - FOREARM**2) / (2 * UPPER_ARM * FOREARM)
    elbow = acos(max(-1.0, min(1.0, bend)))
    lead = (reach * reach + UPPER_ARM**2 - FOREARM**2) / (2 * UPPER_ARM * reach)
    shoulder = -(atan2(z, hypot(x, y)) + acos(max(-1.0, min(1.0, lead))))
    # M = Rz(-a) R = Ry(b) Rx(c) Rz(g).
    ca, sa = cos(yaw), sin(yaw)
    m02 = ca * axis[0] + sa * axis[1]
    m12 = -sa * axis[0] + ca * axis[1]
    m10 = -sa * cy * cp + ca * sy * cp
    m11 = -sa * (cy * sp * sr - sy * cr) + ca * (sy * sp * sr + cy * cr)
    pitch = atan2(m02, axis[2])
    tilt = asin(max(-1.0, min(1.0, -m12)))
    # The hand is mounted a quarter turn off the arm, so that this angle stays far from ±pi in the workspace.
    spin = atan2(-m11, m10)
    return (yaw + pi / 2, shoulder, elbow, pitch - shoulder - elbow, tilt, spin)


def rpy_of(rotation: list[float]) -> Vector:
    """(roll, pitch, yaw) of a row-major 3×3 rotation Rz(yaw) Ry(pitch) Rx(roll)."""
    pitch = asin(max(-1.0, min(1.0, -rotation[6])))
    return (atan2(rotation[7], rotation[8]), pitch, atan2(rotation[3], rotation[0]))
