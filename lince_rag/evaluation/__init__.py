"""Evaluation: ask an index the questions of a file, measure the answers and report the results."""

from lince_rag.evaluation.questions import Question, load_questions
from lince_rag.evaluation.runs import Evaluation, evaluate

__all__ = ["Evaluation", "Question", "evaluate", "load_questions"]
