"""All questions of the planner, by name, in the order in which the page shows them."""

from __future__ import annotations

from .planner_cost import COST
from .planner_fleet import FLEET
from .planner_guide import GUIDE
from .planner_memory import MEMORY
from .planner_serving import SERVING
from .planner_training import TRAINING

ORDER = ("model", "memory", "roofline", "serve", "train", "layout", "gpus", "cost", "fleet", "guide")
QUESTIONS = {
    question.name: question
    for question in sorted((*TRAINING, *MEMORY, *SERVING, *COST, *FLEET, *GUIDE), key=lambda one: ORDER.index(one.name))
}
