"""Speed, measured: candidates interleaved in one process, reported as ratios with their spread."""
