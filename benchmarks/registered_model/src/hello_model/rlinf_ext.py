"""The example plugin's model by the field's documented way: a builder, `register_model`, an extension module.

Every shell that starts a driver, a worker or a tool needs `export RLINF_EXT_MODULE=hello_model.rlinf_ext`.
"""

from rlinf.models import register_model


def build_hello(cfg, torch_dtype):
    from rlinf_plugin_hello.config import HelloConfig
    from rlinf_plugin_hello.model import HelloPolicy

    config = HelloConfig(state_dim=cfg.state_dim, hidden_size=cfg.hidden_size, log_std=cfg.log_std)
    return HelloPolicy(config, cfg.num_action_chunks, cfg.action_dim).to(torch_dtype)


def register():
    register_model("hello_registered", build_hello, category="embodied")
