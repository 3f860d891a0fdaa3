"""The smallest complete rlinf model plugin."""
