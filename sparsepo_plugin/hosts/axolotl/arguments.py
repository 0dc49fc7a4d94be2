"""Keys of the loss in Axolotl's own schema, as plugins add them: no key of it is dropped as unknown."""

from typing import Any

from pydantic import BaseModel, Field


class LossInput(BaseModel):
    """What `SparsePOPlugin` puts at the top of a configuration."""

    loss: str | None = Field(None, description="registered name of a loss, or `package.module:ClassName`")
    loss_options: dict[str, Any] | None = Field(None, description="the section of its name, moved here by the plugin")
    loss_plugins: list[str] | None = Field(None, description="modules that register losses and masks")
