/** The camera: its pictures, one after the other, as fast as they are taken care of. */

const REASONS: Record<string, string> = {
  NotAllowedError:
    "The browser does not let this page use the camera: allow it in the page's settings, then try again.",
  NotFoundError: "There is no camera on this machine. Choose a photo instead.",
  NotReadableError: "The camera is used by another program, or does not answer.",
};

export class Camera {
  private stream?: MediaStream;

  /**
   * @param video shows the picture.
   * @param take is given a picture; the next one waits until it is done.
   * @param ended is told that the camera has gone (unplugged, or its permission taken back).
   */
  constructor(
    private readonly video: HTMLVideoElement,
    private readonly take: (picture: ImageBitmap) => Promise<void>,
    private readonly ended: (reason: string) => void,
  ) {}

  get isOn(): boolean {
    return this.stream !== undefined;
  }

  /** @throws Error that says why there are no pictures. */
  async start(): Promise<void> {
    if (!navigator.mediaDevices?.getUserMedia) {
      throw new Error("Browsers give the camera only to pages that come by https, or from this machine (localhost).");
    }
    let stream: MediaStream;
    try {
      stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" }, audio: false });
    } catch (error) {
      const { name, message } = error as DOMException;
      throw new Error(REASONS[name] ?? `The camera does not start: ${message || name}`);
    }
    this.stop();
    this.stream = stream;
    for (const track of stream.getTracks()) {
      track.onended = () => {
        if (this.stream !== stream) return;
        this.stop();
        this.ended("The camera has been switched off.");
      };
    }
    this.video.srcObject = stream;
    await this.video.play();
    void this.run(stream);
  }

  stop(): void {
    for (const track of this.stream?.getTracks() ?? []) track.stop();
    this.stream = undefined;
    this.video.srcObject = null;
  }

  private async run(stream: MediaStream): Promise<void> {
    try {
      while (this.stream === stream) {
        await new Promise(requestAnimationFrame); // browsers hold it back while nobody sees the page
        if (this.stream !== stream || this.video.readyState < HTMLMediaElement.HAVE_CURRENT_DATA) continue;
        await this.take(await createImageBitmap(this.video));
      }
    } catch (error) {
      if (this.stream !== stream) return;
      this.stop();
      this.ended(error instanceof Error ? error.message : String(error));
    }
  }
}
