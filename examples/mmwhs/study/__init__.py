"""Many runs: tables, comparisons, reports and figures."""
