"""Upstream, unmodified: worktree, script → plan, tracer, runner, log line → metric, artifact groups."""
