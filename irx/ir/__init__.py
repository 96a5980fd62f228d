"""What a program is: dims, types, values, nodes, graphs, weights, and their text form."""
