"""The process's view of its plugins: who offers a name, the module behind it, its specs and hooks.

Discover, import, register and build are four steps: the metadata is read once per `sys.path`; looking a
name up imports the module of that name and no other; its hooks are registered once; what the specs name is
resolved by whoever builds. `register_model` adds names by user code, held apart from what is installed.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

from rlinf.plugins.discovery import (
    ENVS,
    GROUPS,
    MODELS,
    REGISTERED,
    REWARDS,
    Discovered,
    PluginPolicy,
    Scan,
    judge,
    scan,
    scan_key,
)
from rlinf.plugins.errors import HookError, PluginConflictError, PluginError, UnknownPluginError, closest

if TYPE_CHECKING:
    import pluggy

    from rlinf.plugins.plan import Plan
    from rlinf.plugins.specs import ActionProcessorSpec, DatasetFormatSpec, EnvSpec, ModelSpec, RewardSpec

T = TypeVar("T")

#: Where well-known names live, for the advice when they are not installed.
PIP_INSTALL = {
    "openvla": "rlinf-plugin-openvla",
    "openvla_oft": "rlinf-plugin-openvla",
    "openpi": "rlinf-plugin-openpi",
    "dexvla": "rlinf-plugin-dexvla",
}


@dataclass(frozen=True, kw_only=True)
class Registration:
    """A model that user code registered."""

    spec: ModelSpec
    #: The source file of the builder.
    file: str
    forced: bool
    #: What user code had registered before and this replaced.
    instead_of: str = ""

    def as_discovered(self) -> Discovered:
        from rlinf.plugins.loading import target_of

        return Discovered(
            group=MODELS,
            name=self.spec.model_type,
            target=target_of(self.spec.builder),
            distribution=REGISTERED,
            path=self.file,
            state="forced" if self.forced else "registered",
            note=f"force=True, instead of {self.instead_of}" if self.instead_of else "",
        )


class PluginHost:
    """Plugins under one policy. Make one with `configure_host`; tests may hold several."""

    def __init__(self, policy: PluginPolicy | None = None) -> None:
        self.policy = policy or PluginPolicy()
        self._lock = threading.RLock()
        self._scan_key: tuple[tuple[str, int], ...] | None = None
        self._scan = Scan(entries=(), problems=())
        self._registrations: dict[str, Registration] = {}
        self._modules: dict[tuple[str, str], ModuleType] = {}
        self._warned: set[str] = set()
        self._extensions: list[ModuleType] = []
        self._manager: pluggy.PluginManager | None = None

    # -- what there is: metadata only ---
    def discover(self) -> tuple[Discovered, ...]:
        """All entry points of the groups `rlinf.*` and all registrations, with their states. Reads
        metadata only; reads it again when `sys.path` or a folder on it has changed."""
        registered = [registration.as_discovered() for registration in self._registrations.values()]
        return judge([*self._scanned().entries, *registered], self.policy)

    def problems(self) -> tuple[str, ...]:
        """What is wrong with the installed metadata itself, one line each: duplicates, leftovers,
        unreadable files, names that two distributions offer."""
        conflicts: dict[tuple[str, str], str] = {}
        for row in self.discover():
            if row.state == "conflict":
                text = f"{row.group}: {row.name!r} from {row.label}, {row.note}"
                conflicts.setdefault((row.group, row.name), text)
            elif row.state == "broken":
                conflicts[row.group, row.name] = f"{row.group}: {row.name!r} from {row.label}: {row.note}"
        return (*self.metadata_problems(), *conflicts.values())

    def metadata_problems(self) -> tuple[str, ...]:
        """Those of `problems` that no row of `discover` tells: duplicates, leftovers, unreadable files."""
        return self._scanned().problems

    def model_types(self) -> tuple[str, ...]:
        """Names that `model_spec` can be asked for, sorted."""
        return self.offered(MODELS)

    def env_types(self) -> tuple[str, ...]:
        """Names that `env_spec` can be asked for, sorted."""
        return self.offered(ENVS)

    # -- look-up: imports the one module behind the name ---
    def model_spec(self, model_type: str) -> ModelSpec:
        """The spec of `model_type`.

        Errors: `UnknownPluginError`, `PluginConflictError`, `PluginLoadError`, `HookError`,
        `ApiVersionError`.
        """
        chosen = self.select(MODELS, model_type)
        if chosen.state in ("registered", "forced"):
            return self._registrations[model_type].spec
        return self._spec(chosen)

    def env_spec(self, env_type: str) -> EnvSpec:
        """The spec of `env_type`. Errors: as of `model_spec`."""
        return self._spec(self.select(ENVS, env_type))

    def reward_spec(self, reward_type: str) -> RewardSpec:
        """The spec of `reward_type`. Errors: as of `model_spec`."""
        return self._spec(self.select(REWARDS, reward_type))

    def spec_of(self, group: str, name: str) -> ModelSpec | EnvSpec | RewardSpec:
        """The spec of a name in an entry-point group. Errors: as of `model_spec`."""
        return self.model_spec(name) if group == MODELS else self._spec(self.select(group, name))

    def resolve(self, spec: ModelSpec | EnvSpec | RewardSpec | ActionProcessorSpec, field: str) -> Any:
        """The object that a field names, as in `resolve(spec, "builder")`; errors name the plugin."""
        from rlinf.plugins.loading import SPEC_OF_GROUP, resolve_attr

        of = f"{type(spec).__name__}.{field}"
        for group, (_, kind, key) in SPEC_OF_GROUP.items():
            if isinstance(spec, kind):
                name = getattr(spec, key)
                of += f" of {name!r} from {self.select(group, name).label}"
        return resolve_attr(getattr(spec, field), of=of)

    def action_processors(self, env_type: str, model_type: str) -> list[ActionProcessorSpec]:
        """Processors for this pair, in the order in which they apply: those of the model's plugin, of the
        environment's, of `plugins.load`, of the extension module. A name that no plugin offers contributes
        none.

        Errors: as of `model_spec` for plugins that are offered; `HookError` for another kind of object.
        """
        found: list[ActionProcessorSpec] = []
        for module in self._contributors(model_type, env_type):
            for spec in self.processors_of(module):
                if spec.env_type == env_type and spec.model_type in ("*", model_type) and spec not in found:
                    found.append(spec)
        return found

    def dataset_formats(self, model_type: str, env_type: str) -> list[DatasetFormatSpec]:
        """Formats that the plugins of a run contribute, in the order of `action_processors`; the core's own
        are in `rlinf.data.formats`. Errors: as of `action_processors`."""
        found: list[DatasetFormatSpec] = []
        for module in self._contributors(model_type, env_type):
            found += [spec for spec in self.formats_of(module) if spec not in found]
        return found

    def _contributors(self, model_type: str, env_type: str) -> list[ModuleType]:
        """The modules whose 1:N hooks take part in a run with this model and environment."""
        modules: list[ModuleType] = []
        for group, name in ((MODELS, model_type), (ENVS, env_type)):
            if name in self.offered(group):
                chosen = self.select(group, name)
                if chosen.state not in ("registered", "forced"):
                    modules.append(self.load(chosen))
        return list(dict.fromkeys([*modules, *self._load_extra(self.policy.load), *self._extensions]))

    def select(self, group: str, name: str) -> Discovered:
        """Who provides a name. Imports nothing. Errors: `UnknownPluginError`, `PluginConflictError`."""
        rows = [row for row in self.discover() if (row.group, row.name) == (group, name)]
        able = [row for row in rows if row.state in ("ok", "registered", "forced")]
        if len(able) == 1:
            wanted = self.policy.override.get(name)
            if wanted and wanted != able[0].distribution and able[0].state != "forced":
                self._check_override(name, wanted)
            return able[0]
        for row in rows:
            if row.state == "conflict":
                raise PluginConflictError(self._conflict_text(name, rows))
        for row in rows:
            if row.state == "broken":
                raise PluginError(f"{name!r} from {row.label} is broken: {row.note}")
        raise UnknownPluginError(self._unknown_text(group, name, rows))

    # -- registration by user code ---
    def register_model(
        self,
        model_type: str,
        builder: str | Callable[..., Any],
        category: str = "embodied",
        force: bool = False,
        **fields: Any,
    ) -> None:
        """Make `model_type` known in this process. `fields` are further fields of `ModelSpec`.

        The same builder again is a no-op. Another builder for a taken name is a `PluginConflictError` unless
        `force=True`, which is recorded as an override that `rlinf plugins list` and the plan show. Nothing is
        registered if anything is wrong.
        """
        from rlinf.plugins.loading import check_builder, file_of, same_builder
        from rlinf.plugins.specs import ModelSpec

        try:
            spec = ModelSpec(model_type=model_type, builder=builder, category=category, **fields)
        except TypeError as error:
            known = list(ModelSpec.__dataclass_fields__)
            unknown = next((name for name in fields if name not in known), "")
            raise PluginError(f"register_model({model_type!r}): {error}.{closest(unknown, known)}") from None
        if not isinstance(builder, str):
            check_builder(model_type, builder)
        with self._lock:
            mine = Registration(spec=spec, file=file_of(builder), forced=force)
            earlier = self._registrations.get(model_type)
            if earlier is not None and same_builder(earlier.spec.builder, builder) and not force:
                if replace(earlier.spec, builder=builder) != spec:
                    raise PluginConflictError(
                        f"register_model({model_type!r}): the same builder is registered already, with other "
                        f"fields: {earlier.spec} and now {spec}; pass force=True to replace it"
                    )
                return
            rivals = [row for row in self.discover() if row.group == MODELS and row.name == model_type]
            rivals = [row for row in rivals if row.state not in ("denied", "shadowed")]
            # The configuration may have decided: then its choice stands and this row shows as overridden.
            decided = self.policy.override.get(model_type) in [row.distribution for row in rivals]
            if rivals and not force and not decided:
                if earlier is None and self._is_its_own(rivals, builder):
                    return
                raise PluginConflictError(self._conflict_text(model_type, [*rivals, mine.as_discovered()]))
            if earlier is not None:
                before = earlier.as_discovered()
                mine = replace(mine, instead_of=f"{before.target} in {before.path}")
            self._registrations[model_type] = mine

    def snapshot(self) -> Callable[[], None]:
        """Remember what is registered; the function returned puts it back."""
        registrations, extensions = dict(self._registrations), list(self._extensions)

        def restore() -> None:
            self._registrations, self._extensions = registrations, extensions

        return restore

    def add_extension(self, module: ModuleType) -> None:
        """Register the hook implementations of the extension module. Errors: `HookError`."""
        from rlinf.plugins.loading import check_hooks

        check_hooks(module, f"extension module {module.__name__} ({getattr(module, '__file__', '')})")
        with self._lock:
            if module not in self._extensions:
                self._extensions.append(module)
            self._register(module, f"extension module {module.__name__}")

    def warn(self, problem: str) -> None:
        """Log one warning line, once per host."""
        import logging

        line = problem.replace("\n", " ")
        if line not in self._warned:
            self._warned.add(line)
            logging.getLogger("rlinf.plugins").warning("%s", line)

    def inherit(self, other: PluginHost) -> None:
        """Take over what user code registered with another host."""
        self._registrations = dict(other._registrations)
        self._warned = set(other._warned)
        for module in other._extensions:
            self.add_extension(module)

    # -- hooks, plan ---
    @property
    def manager(self) -> pluggy.PluginManager:
        """pluggy's manager of the plugins that are loaded."""
        if self._manager is None:
            import pluggy

            from rlinf.plugins import hookspecs

            self._manager = pluggy.PluginManager("rlinf")
            self._manager.add_hookspecs(hookspecs)
        return self._manager

    @property
    def hook(self) -> Any:
        """Calls a hook on every loaded plugin: `host.hook.rlinf_step_ended(step=0, metrics={...})`."""
        return self.manager.hook

    def plan(
        self,
        model_type: str | Sequence[str] = (),
        env_type: str | Sequence[str] = (),
        load: Sequence[str] = (),
        rewards: Sequence[str] = (),
    ) -> Plan:
        """Resolve these names (and `policy.load`) to distributions, versions and content hashes; imports
        their modules. Broken plugins that are not asked for cost one warning line each. Errors: as of
        `model_spec`."""
        from rlinf.plugins.plan import make_plan

        def names(given: str | Sequence[str]) -> tuple[str, ...]:
            return (given,) if isinstance(given, str) else tuple(given)

        return make_plan(self, names(model_type), names(env_type), tuple(rewards), (*self.policy.load, *load))

    # -- inside ---
    def _scanned(self) -> Scan:
        key = scan_key(sys.path)
        if self._scan_key != key:
            self._scan, self._scan_key = scan(sys.path), key
        return self._scan

    def offered(self, group: str) -> tuple[str, ...]:
        """The names that a look-up in this group finds, sorted."""
        able = ("ok", "conflict", "broken", "registered", "forced")
        return tuple(
            sorted({row.name for row in self.discover() if row.group == group and row.state in able})
        )

    def _is_its_own(self, rivals: Sequence[Discovered], builder: Any) -> bool:
        """Whether user code registers what an installed plugin already offers: the same builder. The plugin
        is imported to find out only if the builder's module is one of its distribution's."""
        from rlinf.plugins.fingerprint import files_of
        from rlinf.plugins.loading import same_builder, target_of

        if len(rivals) != 1 or rivals[0].state != "ok":
            return False
        top = target_of(builder).partition(":")[0].partition(".")[0]
        if not any(name.partition("/")[0] in (top, f"{top}.py") for name in files_of(rivals[0])):
            return False
        return same_builder(self._spec(rivals[0]).builder, builder)

    def load(self, found: Discovered) -> ModuleType:
        """The module behind an entry point, imported and with its hooks registered, or neither.

        Errors: `PluginLoadError`, `PluginConflictError`, `HookError`.
        """
        from rlinf.plugins.loading import check_hooks, import_plugin

        key = (found.path, found.target)
        with self._lock:
            if key not in self._modules:
                module = import_plugin(found)
                check_hooks(module, found.label)
                self._register(module, found.label)
                self._modules[key] = module
            return self._modules[key]

    def _register(self, module: ModuleType, owner: str) -> None:
        """Give pluggy a module, once, with all of its hooks or none."""
        from pluggy import PluginValidationError

        if self.manager.is_registered(module):
            return
        try:
            self.manager.register(module, name=module.__name__)
        except PluginValidationError as error:
            if self.manager.is_registered(module):  # older versions of pluggy stop half-way
                self.manager.unregister(module)
            raise HookError(f"{owner}: {error}") from None

    def _spec(self, found: Discovered) -> Any:
        from rlinf.plugins.loading import SPEC_OF_GROUP, check_spec

        hook, kind, field = SPEC_OF_GROUP[found.group]
        module = self.load(found)
        if not any(impl.plugin is module for impl in getattr(self.hook, hook).get_hookimpls()):
            raise HookError(
                f"{found.label}: the module {found.target} behind the entry point {found.name!r} of "
                f"{found.group} implements no {hook} (a function of that name with the decorator "
                f"@rlinf.plugins.hookimpl that returns a {kind.__name__})"
            )
        spec = self._call_on(module, hook, **{field: found.name})
        check_spec(found, spec)
        return spec

    def processors_of(self, module: ModuleType) -> list[ActionProcessorSpec]:
        """All action processors that a loaded module contributes. Errors: `HookError`, `PluginLoadError`."""
        from rlinf.plugins.specs import ActionProcessorSpec

        return self._contributed(module, "rlinf_action_processors", ActionProcessorSpec)

    def formats_of(self, module: ModuleType) -> list[DatasetFormatSpec]:
        """All dataset formats that a loaded module contributes. Errors: `HookError`, `PluginLoadError`."""
        from rlinf.plugins.specs import DatasetFormatSpec

        return self._contributed(module, "rlinf_dataset_formats", DatasetFormatSpec)

    def _contributed(self, module: ModuleType, hook: str, kind: type[T]) -> list[T]:
        given = [spec for result in self._call_on(module, hook) for spec in result]
        for spec in given:
            if not isinstance(spec, kind):
                raise HookError(f"{module.__name__}.{hook} must return {kind.__name__} objects, got {spec!r}")
        return given

    def _call_on(self, module: ModuleType, hook: str, **arguments: Any) -> Any:
        """Call a hook on one module only. What it raises becomes a `PluginLoadError` with its traceback."""
        from rlinf.plugins.loading import load_error

        others = [plugin for plugin in self.manager.get_plugins() if plugin is not module]
        try:
            return self.manager.subset_hook_caller(hook, others)(**arguments)
        except Exception as error:
            origin = next((row for row in self.discover() if row.target == module.__name__), None)
            file = getattr(module, "__file__", None) or ""
            raise load_error(f"{module.__name__}.{hook}()", origin, error, file) from None

    def _load_extra(self, names: Iterable[str]) -> list[ModuleType]:
        return [self.load(row) for name in names for row in self.select_any(name)]

    def select_any(self, name: str) -> list[Discovered]:
        """Who provides a name, in whichever group it is offered. Errors: as of `select`."""
        groups = [group for group in GROUPS if name in self.offered(group)]
        rows = [self.select(group, name) for group in groups or (MODELS,)]
        return [row for row in rows if row.state == "ok"]

    def _check_override(self, name: str, wanted: str) -> None:
        offers = {row.distribution for row in self.discover() if row.name == name}
        if wanted not in offers:
            raise PluginConflictError(
                f"plugins.override says that {name!r} comes from {wanted!r}, which is not installed or does "
                f"not offer it; it is offered by {', '.join(sorted(offers))}"
            )

    def _conflict_text(self, name: str, rows: Sequence[Discovered]) -> str:
        lines = [f"{name!r} is offered more than once:"]
        lines += [f"  {row.label}: {row.target}" for row in rows if row.state not in ("denied", "shadowed")]
        dists = list(dict.fromkeys(row.distribution for row in rows if row.version))
        if len(dists) > 1:
            lines.append(
                f"Uninstall one, or decide in the configuration: plugins.override: {{{name}: {dists[0]}}}"
            )
        elif any(row.state in ("registered", "forced") or not row.version for row in rows):
            lines.append(f"To replace it on purpose: register_model({name!r}, ..., force=True)")
        else:
            lines.append("The distribution's entry points contradict each other; its author must fix them.")
        return "\n".join(lines)

    def _unknown_text(self, group: str, name: str, rows: Sequence[Discovered]) -> str:
        kind = {MODELS: "model_type", ENVS: "env_type", REWARDS: "reward type"}[group]
        known = self.offered(group)
        names = ", ".join(known) or "none"
        text = f"unknown {kind} {name!r}.{closest(name, known)} Known: {names}"
        for row in rows:
            text += f"\n{row.label} offers it, but is {row.state}: {row.note}"
        if not rows and name in PIP_INSTALL:
            text += f"\nTo get it: pip install {PIP_INSTALL[name]}"
        elif not rows:
            text += (
                f"\nA plugin offers a name by an entry point of the group {group}; see `rlinf plugins list`."
            )
            extension = os.environ.get("RLINF_EXT_MODULE")
            if extension:
                text += f" RLINF_EXT_MODULE is {extension!r}."
        return text


_host: PluginHost | None = None
_host_lock = threading.Lock()


def get_host() -> PluginHost:
    """The process's host; made with the default policy if `configure_host` was not called."""
    global _host
    with _host_lock:
        if _host is None:
            _host = PluginHost()
        return _host


def configure_host(policy: PluginPolicy) -> PluginHost:
    """Give the process's host a policy; what user code registered stays. Returns the host, a new one if the
    policy differs from the present one."""
    global _host
    host = get_host()
    if host.policy == policy:
        return host
    new = PluginHost(policy)
    new.inherit(host)
    with _host_lock:
        _host = new
    return new
