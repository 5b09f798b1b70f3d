"""Jobs about generators: training one, pre-training from one, P-SSL, and looking at one."""
