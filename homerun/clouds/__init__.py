"""CaaS, RunPod, SkyPilot: render, price, deploy, follow, destroy."""
