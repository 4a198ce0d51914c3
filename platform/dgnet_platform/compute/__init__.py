"""The machines: joining Ray, what fits, work in parts."""
