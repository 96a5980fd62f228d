"""The torch backend: runs any node with torch. The safety net of every other backend, and the quality evaluator."""
