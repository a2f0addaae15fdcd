"""Where reasoning traces come from: a scripted teacher, targeted and rejection sampling, a chat endpoint."""

from gr2_jax.teachers.chat import ChatClient, ChatConfig
from gr2_jax.teachers.sampling import Proposal, Trace, TraceRequest, rejection_traces, targeted_traces
from gr2_jax.teachers.scripted import TeacherWeights, make_scripted_teacher

__all__ = [
  "ChatClient",
  "ChatConfig",
  "Proposal",
  "TeacherWeights",
  "Trace",
  "TraceRequest",
  "make_scripted_teacher",
  "rejection_traces",
  "targeted_traces",
]
