"""The benchmarks behind `gristmill bench`, with the workloads they run on."""
