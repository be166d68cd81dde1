// The JavaScript client of a Penstock server. README.md shows its use, and index.d.ts describes it.
export {
  CutStreamError,
  FailedStreamError,
  IncompleteAnswerError,
  LostEventError,
  PenstockError,
  RefusedError,
  ServerUnreachableError,
  UnexpectedAnswerError,
} from "./errors.js";
export { Penstock } from "./penstock.js";
