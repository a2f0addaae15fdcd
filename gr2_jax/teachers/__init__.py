"""Who teaches: a scripted teacher, trees over the evidence out of fold, and a chat endpoint, by targeted and rejection sampling."""

from gr2_jax.teachers.chat import ChatClient, ChatConfig
from gr2_jax.teachers.sampling import Proposal, Trace, TraceRequest, rejection_traces, targeted_traces
from gr2_jax.teachers.scripted import TeacherWeights, make_scripted_teacher
from gr2_jax.teachers.tree import FoldTrees, fit_lambdamart, lambdamart_scores
from gr2_jax.teachers.tree_reasons import TreeView, make_tree_teacher

__all__ = [
  "ChatClient",
  "ChatConfig",
  "FoldTrees",
  "Proposal",
  "TeacherWeights",
  "Trace",
  "TraceRequest",
  "TreeView",
  "fit_lambdamart",
  "lambdamart_scores",
  "make_scripted_teacher",
  "make_tree_teacher",
  "rejection_traces",
  "targeted_traces",
]
