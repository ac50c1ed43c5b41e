"""What an evaluation computes with: pictures made small as the literature does, and how far two pictures are apart."""
