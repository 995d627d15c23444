"""Words of the adapted model: retrieve by the prompt, adapt, generate with the prompt in context, restore."""

from typing import TYPE_CHECKING

from tttnn.doors import door


if TYPE_CHECKING:
    from tttnn.generation.demo import Exploration, explore, make_demo
    from tttnn.generation.engine import Engine
    from tttnn.generation.generator import Generation, TestTimeGenerator
    from tttnn.generation.prompts import Prompt, read_prompt
    from tttnn.generation.server import create_app
    from tttnn.generation.service import Limits

__all__ = [
    "Engine",
    "Exploration",
    "Generation",
    "Limits",
    "Prompt",
    "TestTimeGenerator",
    "create_app",
    "explore",
    "make_demo",
    "read_prompt",
]

__getattr__, __dir__ = door(
    __name__,
    {
        "Engine": "engine",
        "Exploration": "demo",
        "Generation": "generator",
        "Limits": "service",
        "Prompt": "prompts",
        "TestTimeGenerator": "generator",
        "create_app": "server",
        "explore": "demo",
        "make_demo": "demo",
        "read_prompt": "prompts",
    },
)
