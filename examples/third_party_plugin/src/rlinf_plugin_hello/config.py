"""The keys below `model.hello_policy`."""

from pydantic import BaseModel, ConfigDict, Field


class HelloConfig(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    state_dim: int = Field(7, ge=1, description="Dimensions of the state; 7 on tabletop.")
    hidden_size: int = Field(128, ge=1, description="Width of the MLP.")
    log_std: float = Field(-1.0, description="Logarithm of the action noise's initial standard deviation.")
