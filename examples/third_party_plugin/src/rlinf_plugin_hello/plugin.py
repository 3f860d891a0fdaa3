"""What the core reads when a run asks for `model_type: hello_policy`; heavy code is only named here."""

from rlinf.plugins import ModelSpec, hookimpl


@hookimpl
def rlinf_model_spec() -> ModelSpec:
    return ModelSpec(
        model_type="hello_policy",
        builder="rlinf_plugin_hello.model:build",
        config_schema="rlinf_plugin_hello.config:HelloConfig",
        description="Pooled image, state and hashed words into one MLP.",
    )
