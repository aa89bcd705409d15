"""The local page: mark regions of photographs, ask a checkpoint, read a run; the same answers over HTTP."""
