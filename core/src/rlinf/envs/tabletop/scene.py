"""The MuJoCo scene: a table, a six-joint arm of primitives with a two-finger gripper, free objects.

World axes as the camera sees them: x to the right, y away from the viewer, z up; the table top is z = 0.
The arm stands behind the table and reaches towards the viewer, so it hides little. Its joints are moved by
position actuators, gravity on it is compensated; hand and objects meet through contacts only, nothing is
attached. The hand does not collide with the table: the workspace ends above it.
"""

from __future__ import annotations

from typing import Final

from rlinf.envs.tabletop.kinematics import BASE_Y, FOREARM, HAND_LENGTH, SHOULDER_HEIGHT, UPPER_ARM

#: Seconds of one physics step.
TIMESTEP: Final = 0.01
#: Half the edge of a cube; radius and half the height of a cylinder (m).
HALF: Final = 0.02
#: How far a finger pad can be from the grasp centre (m); an object needs HALF.
OPENING: Final = 0.042
#: Finger tips are this far below the grasp centre (m).
TIP: Final = 0.012
#: Corners of the box in which the grasp centre moves (m).
WORKSPACE_LOW: Final = (-0.22, -0.19, 0.016)
WORKSPACE_HIGH: Final = (0.22, 0.18, 0.22)
#: Largest roll, pitch and yaw of the hand (rad).
ROTATION_LIMIT: Final = (0.5, 0.5, 1.5)
#: Pose of the grasp centre at the start of an episode (m): behind the objects, where it hides none.
START: Final = (0.0, 0.14, 0.14)
#: Middle and half size of the table top, on which the arm stands; radius of the target zone (m).
TABLE_CENTRE: Final = (0.0, 0.13)
TABLE: Final = (0.36, 0.34)
ZONE_RADIUS: Final = 0.045
#: Where the camera is, what it looks at, and its vertical field of view (degrees).
CAMERA_POSITION: Final = (0.0, -0.62, 0.78)
CAMERA_TARGET: Final = (0.0, 0.035, 0.03)
CAMERA_FOVY: Final = 30.0
LIGHT: Final = (-0.45, -0.55, 1.9)

RGB = tuple[float, float, float]
COLORS: Final[dict[str, RGB]] = {
    "red": (0.90, 0.13, 0.12),
    "green": (0.12, 0.66, 0.22),
    "blue": (0.12, 0.32, 0.92),
    "yellow": (0.98, 0.80, 0.08),
}
TABLE_RGB: Final[RGB] = (0.80, 0.72, 0.62)
FLOOR_RGB: Final[RGB] = (0.30, 0.34, 0.40)
ZONE_RGB: Final[RGB] = (0.62, 0.30, 0.72)

#: Geom groups: what never moves, the objects, the hand, the arm.
STATIC, OBJECTS, HAND, ARM = 0, 1, 2, 3
JOINTS: Final = ("yaw", "shoulder", "elbow", "wrist_pitch", "wrist_tilt", "wrist_spin")
_WHITE, _GREY, _DARK = "0.93 0.93 0.95 1", "0.50 0.53 0.58 1", "0.18 0.19 0.22 1"


def _object(index: int) -> str:
    return f"""
    <body name="object{index}" pos="0 0 {HALF}">
      <joint type="free" damping="0.0001"/>
      <geom name="object{index}" type="box" size="{HALF} {HALF} {HALF}" mass="0.1" group="{OBJECTS}"
        friction="0.9 0.01 0.001" condim="3" contype="1" conaffinity="3"/>
    </body>"""


def _finger(name: str, side: int) -> str:
    pad = "0.006 0.011 0.026"
    return f"""
              <body name="{name}" pos="0 0 {TIP - 0.038 + 0.012 - HAND_LENGTH}" gravcomp="1">
                <joint name="{name}" type="slide" axis="{side} 0 0" range="0 {OPENING}" limited="true"
                  damping="2" armature="0.1"/>
                <geom name="{name}" type="box" size="{pad}" pos="{side * 0.006} 0 0.028" mass="0.04"
                  rgba="{_DARK}" group="{HAND}" friction="2.0 0.02 0.001" condim="4" contype="2"
                  conaffinity="1"/>
              </body>"""


def _arm() -> str:
    # The palm has a body of its own: mj_multiRay (MuJoCo 3.3.0) culls a body by the box around its colliding
    # geoms, so that geoms which are only seen would vanish in part beside one that collides.
    visual = 'contype="0" conaffinity="0"'
    return f"""
    <body name="base" pos="0 {BASE_Y} 0" euler="0 0 -90" gravcomp="1">
      <body name="turret" gravcomp="1">
        <joint name="yaw" axis="0 0 1" armature="0.05"/>
        <geom type="cylinder" size="0.05" fromto="0 0 0 0 0 {SHOULDER_HEIGHT}" mass="1" rgba="{_WHITE}"
          group="{ARM}" {visual}/>
        <body name="upper_arm" pos="0 0 {SHOULDER_HEIGHT}" gravcomp="1">
          <joint name="shoulder" axis="0 1 0" armature="0.05"/>
          <geom type="cylinder" size="0.05" fromto="0 -0.055 0 0 0.055 0" mass="0.3" rgba="{_GREY}"
            group="{ARM}" {visual}/>
          <geom type="capsule" size="0.036" fromto="0 0 0 {UPPER_ARM} 0 0" mass="0.8" rgba="{_WHITE}"
            group="{ARM}" {visual}/>
          <body name="forearm" pos="{UPPER_ARM} 0 0" gravcomp="1">
            <joint name="elbow" axis="0 1 0" armature="0.05"/>
            <geom type="cylinder" size="0.042" fromto="0 -0.046 0 0 0.046 0" mass="0.3" rgba="{_GREY}"
              group="{ARM}" {visual}/>
            <geom type="capsule" size="0.028" fromto="0 0 0 {FOREARM} 0 0" mass="0.5" rgba="{_WHITE}"
              group="{ARM}" {visual}/>
            <body name="hand" pos="{FOREARM} 0 0" euler="0 0 90" gravcomp="1">
              <joint name="wrist_pitch" axis="1 0 0" armature="0.02"/>
              <joint name="wrist_tilt" axis="0 -1 0" armature="0.02"/>
              <joint name="wrist_spin" axis="0 0 1" armature="0.02"/>
              <geom type="sphere" size="0.033" mass="0.2" rgba="{_GREY}" group="{ARM}" {visual}/>
              <geom type="cylinder" size="0.022" fromto="0 0 0 0 0 {-HAND_LENGTH + 0.065}" mass="0.1"
                rgba="{_WHITE}" group="{HAND}" {visual}/>
              <body name="palm" gravcomp="1">
                <geom name="palm" type="box" size="0.052 0.016 0.012" pos="0 0 {-HAND_LENGTH + 0.054}"
                  mass="0.15" rgba="{_GREY}" group="{HAND}" contype="2" conaffinity="1"/>
              </body>
              <site name="grasp" pos="0 0 {-HAND_LENGTH}" size="0.004" rgba="0 0 0 0"/>
              {_finger("left", -1)}{_finger("right", 1)}
            </body>
          </body>
        </body>
      </body>
    </body>"""


def _actuators() -> str:
    # (stiffness, largest torque): strong enough to follow 0.4 m/s, too weak to crush an object.
    gains = ((900, 25), (900, 25), (900, 25), (250, 8), (250, 8), (250, 8))
    arms = "".join(
        f'<position name="{name}" joint="{name}" kp="{kp}" dampratio="1" forcerange="{-limit} {limit}"/>'
        for name, (kp, limit) in zip(JOINTS, gains)
    )
    fingers = "".join(
        f'<position name="{name}" joint="{name}" kp="350" kv="35"/>' for name in ("left", "right")
    )
    return arms + fingers


def scene_xml(num_objects: int) -> str:
    """The MJCF text of the scene."""
    objects = "".join(_object(index) for index in range(num_objects))
    rgb = " ".join(str(c) for c in TABLE_RGB)
    zone = " ".join(str(c) for c in ZONE_RGB)
    floor = " ".join(str(c) for c in FLOOR_RGB)
    light = " ".join(str(c) for c in LIGHT)
    return f"""
<mujoco model="rlinf-tabletop">
  <compiler angle="degree" autolimits="true"/>
  <option timestep="{TIMESTEP}" integrator="implicitfast" iterations="50" ls_iterations="50"
    cone="elliptic" impratio="10"/>
  <size memory="2M"/>
  <visual>
    <quality offsamples="0" shadowsize="0"/>
    <global offwidth="512" offheight="512"/>
    <headlight ambient="0.45 0.45 0.45" diffuse="0.2 0.2 0.2" specular="0 0 0"/>
    <map znear="0.05" zfar="20"/>
  </visual>
  <default>
    <geom solref="0.02 1" solimp="0.9 0.95 0.001"/>
  </default>
  <asset>
    <texture type="skybox" builtin="flat" rgb1="{floor}" width="8" height="8"/>
  </asset>
  <worldbody>
    <light pos="{light}" dir="0.2 0.25 -1" diffuse="0.6 0.6 0.6" specular="0 0 0"/>
    <geom name="table" type="plane" size="{TABLE[0]} {TABLE[1]} 0.1"
      pos="{TABLE_CENTRE[0]} {TABLE_CENTRE[1]} 0" rgba="{rgb} 1"
      group="{STATIC}" friction="0.8 0.01 0.001" contype="2" conaffinity="1"/>
    <site name="zone" pos="0.1 0.1 0" type="cylinder" size="{ZONE_RADIUS} 0.0006" rgba="{zone} 0"/>
    {_arm()}{objects}
  </worldbody>
  <actuator>{_actuators()}</actuator>
</mujoco>"""
