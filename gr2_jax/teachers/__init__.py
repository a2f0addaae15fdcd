"""Who teaches: a scripted teacher and a chat endpoint, by targeted and rejection sampling; trees over the evidence, out of fold."""

from gr2_jax.teachers.chat import ChatClient, ChatConfig
from gr2_jax.teachers.sampling import Proposal, Trace, TraceRequest, rejection_traces, targeted_traces
from gr2_jax.teachers.scripted import TeacherWeights, make_scripted_teacher
from gr2_jax.teachers.tree import fit_lambdamart, lambdamart_scores, out_of_fold_scores

__all__ = [
  "ChatClient",
  "ChatConfig",
  "Proposal",
  "TeacherWeights",
  "Trace",
  "TraceRequest",
  "fit_lambdamart",
  "lambdamart_scores",
  "make_scripted_teacher",
  "out_of_fold_scores",
  "rejection_traces",
  "targeted_traces",
]
