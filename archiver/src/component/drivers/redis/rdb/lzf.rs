//! LZF, the compression of strings in RDB files (Marc Lehmann's liblzf).

/// Room that is set aside before anything was decompressed, whatever was announced.
const FIRST_BYTES_MAX: usize = 1 << 20;

/// What `input` was made of; `None` when it is not what compressing `length` bytes gives.
#[must_use]
pub(super) fn decompress(input: &[u8], length: usize) -> Option<Vec<u8>> {
    let mut output = Vec::with_capacity(length.min(FIRST_BYTES_MAX));
    let mut rest = input;
    while let Some((control, after)) = rest.split_first() {
        rest = after;
        let control = usize::from(*control);
        if control < 32 {
            let (literal, after) = rest.split_at_checked(control + 1)?;
            output.extend_from_slice(literal);
            rest = after;
        } else {
            let mut run = control >> 5;
            if run == 7 {
                let (more, after) = rest.split_first()?;
                run += usize::from(*more);
                rest = after;
            }
            let (low, after) = rest.split_first()?;
            rest = after;
            let back = ((control & 0x1f) << 8) + usize::from(*low) + 1;
            let begin = output.len().checked_sub(back)?;
            // Byte by byte: a run may reach into what it writes itself.
            for from in begin..begin + run + 2 {
                output.push(*output.get(from)?);
            }
        }
        if output.len() > length {
            return None;
        }
    }
    (output.len() == length).then_some(output)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_and_runs() {
        // "ab", then eight bytes from two back.
        let input = [1, b'a', b'b', 6 << 5, 1];
        assert_eq!(decompress(&input, 10).unwrap(), b"ababababab");
        assert_eq!(decompress(&input, 9), None);
        assert_eq!(decompress(&input, 11), None);
    }

    #[test]
    fn damage_is_none_and_no_panic() {
        for input in [
            &[31, 1][..],
            &[7 << 5],
            &[7 << 5, 1],
            &[1 << 5, 0],
            &[0, b'a', 1 << 5, 9],
        ] {
            assert_eq!(decompress(input, 4), None, "{input:?}");
        }
    }
}
