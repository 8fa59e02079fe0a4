"""What a row means: forms of questions that are recognised from columns, and their way to turns, images and answers."""
