"""Counts of `gsr-serve` for Prometheus, in a registry of its own. No label comes from a client's text."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from gsr_rl.solving import Ask, Solution

BUCKETS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)


class Metrics:
    """What is counted: requests by status and mode, tokens by stage, seconds, places, the backend."""

    def __init__(self, places, backend):
        self._registry = CollectorRegistry()
        self.requests = Counter("gsr_requests", "Answered requests", ["status"], registry=self._registry)
        self.modes = Counter("gsr_solved", "Solved problems", ["mode"], registry=self._registry)
        self.degraded = Counter("gsr_degraded", "Degraded answers", ["reason"], registry=self._registry)
        self.tokens = Counter("gsr_tokens", "Tokens", ["kind"], registry=self._registry)
        self.seconds = Histogram("gsr_request_seconds", "Of an answer", buckets=BUCKETS, registry=self._registry)
        self.stages = Histogram("gsr_stage_seconds", "Of a stage", ["stage"], buckets=BUCKETS, registry=self._registry)
        running = Gauge("gsr_requests_running", "Requests worked on", registry=self._registry)
        waiting = Gauge("gsr_requests_waiting", "Requests in the queue", registry=self._registry)
        up = Gauge("gsr_backend_up", "1 if the backend answers", registry=self._registry)
        running.set_function(lambda: places.running)
        waiting.set_function(lambda: places.waiting)
        up.set_function(lambda: float(backend.up))

    def solved(self, solution: Solution, mode: str) -> None:
        self.modes.labels(mode).inc()
        self.seconds.observe(solution.seconds)
        if solution.degraded:
            self.degraded.labels(solution.degraded).inc()
        for kind in ("prompt", "candidate", "refinement"):
            self.tokens.labels(kind).inc(getattr(solution.usage, f"{kind}_tokens"))

    def stage(self, ask: Ask, seconds: float) -> None:
        self.stages.labels(ask.stage).observe(seconds)

    def text(self) -> bytes:
        """In Prometheus's own format."""
        return generate_latest(self._registry)
