"""Words of the adapted model: retrieve by the prompt, adapt, generate with the prompt in context, restore."""

from typing import TYPE_CHECKING

from tttnn.doors import door


if TYPE_CHECKING:
    from tttnn.generation.generator import Generation, TestTimeGenerator
    from tttnn.generation.prompts import Prompt, read_prompt

__all__ = ["Generation", "Prompt", "TestTimeGenerator", "read_prompt"]

__getattr__, __dir__ = door(
    __name__,
    {
        "Generation": "generator",
        "Prompt": "prompts",
        "TestTimeGenerator": "generator",
        "read_prompt": "prompts",
    },
)
