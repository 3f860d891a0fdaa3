"""OpenVLA and OpenVLA-OFT for rlinf."""
