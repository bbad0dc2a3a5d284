"""Refined answers: in Python (`Solver`), on a command line (`gsr-solve`), behind an OpenAI API (`gsr-serve`).

In goes a problem, or a chat whose last message is one. Out comes a `Solution`: candidates with their votes,
refinements, the answer, what it cost, and what was degraded on the way. `steps.py` says what is sampled next and what
is answered when something fails, and knows no engine. `solver.py` drives it with an engine of this process;
`server.py`, `job.py` and `backend.py` drive it with requests to a vLLM server, for many clients at once. Start reading
at `steps.py`; the keys are in `config.py`.
"""
