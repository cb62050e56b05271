"""What a file seems to be, by its first bytes: for messages about files that are not checkpoints."""

import codecs
import os
import zipfile

from clit_basicsr.base.errors import UserError

SAFETENSORS = '.safetensors'
FLAX = '.pkl'  # of the published Thera
SUFFIXES = ('.pth', '.pt', SAFETENSORS)  # of checkpoints
GIVE_THE_CHECKPOINT = 'give the checkpoint (.pth, .pt or .safetensors)'
UNPACK = 'unpack it and give the checkpoint in it'
AGAIN = 'copy or download it again'
# First bytes, what such a file is, and what to do.
SIGNATURES = (
    (b'\xff\xd8\xff', 'a JPEG picture', GIVE_THE_CHECKPOINT),
    (b'\x89PNG\r\n\x1a\n', 'a PNG picture', GIVE_THE_CHECKPOINT),
    (b'GIF8', 'a GIF picture', GIVE_THE_CHECKPOINT),
    (b'II*\x00', 'a TIFF picture', GIVE_THE_CHECKPOINT),
    (b'MM\x00*', 'a TIFF picture', GIVE_THE_CHECKPOINT),
    (b'BM', 'a BMP picture', GIVE_THE_CHECKPOINT),
    (b'%PDF', 'a PDF document', GIVE_THE_CHECKPOINT),
    (b'\x1f\x8b', 'a gzip archive', UNPACK),
    (b'BZh', 'a bzip2 archive', UNPACK),
    (b'\xfd7zXZ\x00', 'an xz archive', UNPACK),
    (b'\x28\xb5\x2f\xfd', 'a zstd archive', UNPACK),
    (b'7z\xbc\xaf\x27\x1c', 'a 7-zip archive', UNPACK),
    (b'Rar!', 'a RAR archive', UNPACK),
    (b'\x93NUMPY', 'a NumPy array (.npy)', GIVE_THE_CHECKPOINT),
    (b'\x89HDF\r\n', 'an HDF5 file', 'save the weights with torch.save where it was made'),
    (b'version https://git-lfs', 'a pointer of Git LFS, not the file itself', 'fetch it with git lfs pull'),
)
HEAD = 1024


def check_regular(path: str) -> None:
    """Raises UserError unless there is a file of that name that can be opened."""
    if os.path.isdir(path):
        inside = sorted(name for name in os.listdir(path) if name.endswith(SUFFIXES))
        example = f', such as {os.path.join(path, inside[0])}' if inside else ''
        raise UserError(f'{path} is not a checkpoint but a folder; give a file in it{example}.')
    if not os.path.exists(path):
        raise UserError(f'checkpoint {path} does not exist.')
    if not os.path.isfile(path):
        raise UserError(f'{path} is not a checkpoint but a device or a pipe; {GIVE_THE_CHECKPOINT}.')


def check_may_be_checkpoint(path: str) -> bool:
    """Raises UserError, with what the file seems to be, unless it begins as files of torch.save do.

    Returns:
        Whether it is an archive (torch 1.6 and later) and not the bare pickle of earlier versions.
    """
    try:
        with open(path, 'rb') as file:
            head = file.read(HEAD)
    except OSError as error:
        raise UserError(f'checkpoint {path} cannot be read ({error.strerror or error}).') from error
    if head[:4] == b'PK\x03\x04':
        return True
    if head[:1] == b'\x80' and head[1:2] in b'\x02\x03\x04\x05':
        return False
    kind, remedy = _kind(head)
    raise UserError(f'{path} is not a checkpoint but {kind}; {remedy}.')


def _kind(head: bytes) -> tuple[str, str]:
    """What a file with these first bytes is, and what to do about it."""
    if not head:
        return 'an empty file', AGAIN
    for signature, kind, remedy in SIGNATURES:
        if head.startswith(signature):
            return kind, remedy
    if head[:4] == b'RIFF' and head[8:12] == b'WEBP':
        return 'a WebP picture', GIVE_THE_CHECKPOINT
    if head[257:262] == b'ustar':
        return 'a tar archive', UNPACK
    if head[8:10] == b'{"':
        return 'a safetensors file by its content', 'give it a name that ends in .safetensors'
    if head.lstrip()[:9].lower().startswith((b'<!doctype', b'<html', b'<?xml')):
        return 'a web page, perhaps a notice that came in place of the download', 'download it from its direct address'
    if not head.strip(b'\0'):
        return 'a file that begins with zeros, so an incomplete copy', AGAIN
    return (
        ('a text file', GIVE_THE_CHECKPOINT)
        if _is_text(head)
        else ('a damaged file, or one of an unknown format', AGAIN)
    )


def _is_text(head: bytes) -> bool:
    try:
        # A character may be cut off at the end.
        text = codecs.getincrementaldecoder('utf-8')().decode(head)
    except UnicodeDecodeError:
        return False
    return all(one.isprintable() or one in '\t\r\n\f' for one in text)


def check_is_torch_archive(path: str, archive: zipfile.ZipFile) -> None:
    """Raises UserError, with what the zip archive seems to be, unless torch.save made it."""
    names = archive.namelist()
    inner = {name.partition('/')[2] for name in names}
    if 'constants.pkl' in inner:
        raise UserError(f'{path} is not a checkpoint but a TorchScript program; save its state_dict() with torch.save.')
    if 'data.pkl' in inner:
        return
    if names and all(name.endswith('.npy') for name in names):
        raise UserError(f'{path} is not a checkpoint but a NumPy archive (.npz); {GIVE_THE_CHECKPOINT}.')
    shown = ', '.join(names[:2]) or 'nothing'
    raise UserError(f'{path} is not a checkpoint but a zip archive of other files ({shown}); {UNPACK}.')
